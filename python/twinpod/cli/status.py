"""`twinpod status DIR`: where a run stands now."""

from __future__ import annotations

import argparse

from twinpod.cli.progress import read_progress
from twinpod.cli.words import duration, number
from twinpod.errors import InputError
from twinpod.local.folder import RunFolder


def execute(arguments: argparse.Namespace) -> int:
    """A few lines from the books; works on a running and on a finished run."""
    folder = RunFolder(arguments.folder)
    if not folder.job_file.exists():
        raise InputError("is not a run folder (it has no job.json)", where=str(arguments.folder))
    seen = read_progress(folder.books)
    if seen is None or seen.progress is None:
        print("the master has not begun yet; see: twinpod logs", arguments.folder)
        return 0
    now = seen.progress
    message, asleep = f": {now.message}" if now.message else "", "" if folder.in_use() else " (not running)"
    print(f"state       {now.state}{message}{asleep}")
    where = f"{min(now.iteration, now.iterations)} of {now.iterations}"
    print(f"iteration   {where}, phase {now.phase}, weights version {now.version}")
    if now.waiting_for:
        print(f"waiting for {now.waiting_for}")
    print(f"reward      {number(now.reward, 3)}, right {number(now.right, 3)}, length {number(now.length, 1)}")
    print(f"time left   {duration(now.eta_s)}")
    return 0
