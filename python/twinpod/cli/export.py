"""`twinpod export DIR OUT`: the trained model of a finished run, copied out of its folder."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from twinpod.errors import InputError
from twinpod.local.folder import RunFolder


def execute(arguments: argparse.Namespace) -> int:
    """Copies the export; the target appears whole or not at all."""
    folder, target = RunFolder(arguments.folder), arguments.to
    if not folder.job_file.exists():
        raise InputError("is not a run folder (it has no job.json)", where=str(arguments.folder))
    if not (folder.export / "config.json").exists():
        raise InputError(
            "the run has not been exported: that happens when it ends",
            where=str(arguments.folder),
            mend="give the command that started it again, it goes on where it stopped",
        )
    if target.exists():
        raise InputError("exists already", where=str(target), mend="name a folder that does not exist")
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(folder.export, part)
    part.rename(target)
    print(how_to_open(target))
    return 0


def how_to_open(folder: Path) -> str:
    """A line that says what the folder is good for."""
    return f"{folder}: open it with transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})"
