"""What a supervisor starts: the noun, and the command line around it that puts it where it belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One process that must run for as long as its cluster does.

    `space`: name of the namespaces it lives in (`control`, a node), empty for the machine's own.
    `level`: programs of a lower level are started first and stopped last; a level begins when the gate of the one
    before is open.
    `stop_s`: seconds it may take to end after SIGTERM.
    """

    name: str
    command: tuple[str, ...]
    space: str = ""
    level: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_s: float = 5.0


def flags(values: Mapping[str, object]) -> tuple[str, ...]:
    """`--name=value` for each; booleans as Kubernetes writes them."""
    return tuple(
        f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in values.items()
    )


def wrapped(program: Program, spaces: Mapping[str, Sequence[str]]) -> list[str]:
    """The full command line: ends with its parent, whatever kills that, and runs inside its namespaces.

    `spaces`: arguments of nsenter for each name. Nothing forks on the way, so the process number is the program's.
    """
    inside = ["nsenter", *spaces[program.space], "--"] if program.space else []
    return ["setpriv", "--pdeathsig", "KILL", "--", *inside, *program.command]
