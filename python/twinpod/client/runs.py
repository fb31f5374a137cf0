"""Runs on this machine, read from their databases."""

from __future__ import annotations

from pathlib import Path

from twinpod.master.inspect import inspect
from twinpod.records.run import RunReport


def open_run(folder: Path | str) -> RunReport:
    """The report of a running or finished run; InputError when the folder has no books."""
    return inspect(Path(folder))
