"""A folder appears whole or not at all: written beside its final name, then renamed into place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def partial_name(folder: Path) -> Path:
    """Where `folder` is written before it is renamed; the same on every rank, and on the same file system."""
    return folder.with_name(f".{folder.name}.partial")


def begin_folder(folder: Path) -> Path:
    """Make the empty partial folder; what a killed process left there is removed. Rank 0 only."""
    partial = partial_name(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def finish_folder(folder: Path) -> None:
    """Make what was written durable and rename it into place, replacing an older one.

    Rank 0 only, after all ranks wrote.
    """
    partial = partial_name(folder)
    for path in partial.iterdir():
        _sync(path)
    _sync(partial)
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old)
    else:
        partial.rename(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
