"""One thing that `twinpod doctor` has looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`what` was found; `mend` is a command or the way to mend it, of interest only when it is not `good`."""

    name: str
    good: bool
    what: str
    mend: str


def memory_of(field: str) -> int:
    """Bytes of a field of /proc/meminfo."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024
