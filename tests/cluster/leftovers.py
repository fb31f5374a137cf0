"""What a cluster leaves behind when its supervisor was killed, found and removed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.layout import ClusterFault, Layout

DEADLINE_S = 20.0
CGROUPS = Path("/sys/fs/cgroup")


def sweep(layout: Layout) -> None:
    """Kill every process of the cluster and remove its control groups. Returns when all are observed gone."""
    deadline = time.monotonic() + DEADLINE_S
    while left := processes(layout):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline:
            raise ClusterFault(
                f"processes {sorted(left)} of cluster {layout.name} do not end; see what holds them in /proc"
            )
        time.sleep(0.05)
    while there := cgroups(layout):
        for folder in there:
            try:
                folder.rmdir()
            except OSError:
                continue  # the kernel lets go of the last process a moment later
        if time.monotonic() > deadline:
            raise ClusterFault(f"control groups {there[0]}... of cluster {layout.name} cannot be removed")
        time.sleep(0.02)


def processes(layout: Layout) -> set[int]:
    """All processes that were started by the cluster's supervisor or live in its pods."""
    marked = {pid for pid, environment in _environments() if layout.marker.encode() in environment}
    inside = {pid for folder in cgroups(layout) for pid in _members(folder)}
    return (marked | inside) - {os.getpid()}


def cgroups(layout: Layout) -> list[Path]:
    """The cluster's control groups in every hierarchy, innermost first."""
    tops = [top / layout.cgroup.lstrip("/") for top in (CGROUPS, *CGROUPS.glob("*/"))]
    found = {folder.resolve() for top in tops if top.is_dir() for folder in (top, *(p for p in top.rglob("*/")))}
    return sorted(found, key=lambda folder: len(folder.parts), reverse=True)


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                yield int(folder.name), (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended, or belongs to another user


def _members(folder: Path) -> list[int]:
    try:
        return [int(line) for line in (folder / "cgroup.procs").read_text().split()]
    except OSError:
        return []
