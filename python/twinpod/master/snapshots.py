"""Folders of durable snapshots: their names, and the end of those that no resume will ask for."""

from __future__ import annotations

import shutil
from pathlib import Path


def snapshot_folder(snapshots: Path, iteration: int, epoch: int) -> str:
    """Where the state after an iteration goes. Pure."""
    return str(snapshots / f"iteration-{iteration:06d}-epoch-{epoch}")


def prune(snapshots: Path, keep: set[str]) -> None:
    """Remove snapshots that were replaced."""
    for old in snapshots.glob("iteration-*-epoch-*"):
        if old.name not in keep:
            shutil.rmtree(old, ignore_errors=True)
