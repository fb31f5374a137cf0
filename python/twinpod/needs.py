"""What a process needs of its image, looked at when it starts: one line that names the module or program and what to
do, instead of a NameError an hour later.

Standard library only; `trainer` and `inference` say what they need, and when.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from twinpod.errors import EnvironmentFault

__all__ = ["Module", "Program", "check_needs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A module that must be importable. `find_only`: it is looked for and not imported here."""

    name: str
    why: str
    find_only: bool = False

    def trouble(self) -> str:
        """What is wrong with it; empty when nothing is."""
        try:
            if self.find_only:
                return "" if importlib.util.find_spec(self.name) else "No such module"
            importlib.import_module(self.name)
        except Exception as error:  # noqa: BLE001  # a library of another build may raise anything
            return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program that must be on the path."""

    name: str
    why: str

    def trouble(self) -> str:
        """What is wrong with it; empty when nothing is."""
        return "" if shutil.which(self.name) else "No such program on the path"


def check_needs(needs: Sequence[Module | Program], *, mend: str) -> None:
    """EnvironmentFault for the first need that is not met."""
    for need in needs:
        if trouble := need.trouble():
            raise EnvironmentFault(f"is needed {need.why}: {trouble}", where=need.name, mend=mend)
