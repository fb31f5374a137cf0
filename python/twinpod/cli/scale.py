"""`twinpod scale DIR NAME N`: how many pods a RolloutPool of a running local run has, as `kubectl scale` does it."""

from __future__ import annotations

import argparse

from twinpod.errors import InputError
from twinpod.local.control import scale
from twinpod.local.folder import RunFolder


def execute(arguments: argparse.Namespace) -> int:
    """One line: from how many to how many."""
    folder = RunFolder(arguments.folder)
    if not folder.job_file.exists():
        raise InputError("is not a run folder (it has no job.json)", where=str(arguments.folder))
    if not folder.in_use():
        raise InputError(
            "no run is going on here",
            where=str(arguments.folder),
            mend="start it with: twinpod run FILE --local",
        )
    was = scale(folder.root, arguments.pool, arguments.replicas)
    print(f"{arguments.pool}: {was} → {arguments.replicas} pods")
    return 0
