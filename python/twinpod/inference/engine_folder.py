"""Files that a killed engine leaves behind: its temporary folder and its shared memory.

SGLang makes socket files in the temporary folder and segments in /dev/shm, and only an orderly end removes them. A
run that starts an engine in every iteration would fill the shared memory that the weights need. So each engine gets a
temporary folder of its own (`plugins.keep_in_folder` brings one more kind of file there), and when it is gone the
folder goes too, and so do the segments that carry the pid of a process that is no more.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["adopt", "clear", "make_folder"]

SHARED_MEMORY = Path("/dev/shm")
_NAMED_AFTER_A_PID = "sgl_shm_"  # sgl_shm_<kind>_<pid>_<random>


def make_folder() -> Path:
    """A temporary folder for one engine. Its name is short: socket paths end at 107 bytes."""
    return Path(tempfile.mkdtemp(prefix="twinpod-engine-"))


def adopt(folder: Path) -> None:
    """Make `folder` the temporary folder of this process and its children."""
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = str(folder)


def clear(folder: Path, shared_memory: Path = SHARED_MEMORY) -> None:
    """Remove what the engine of `folder`, all of whose processes are gone, has left."""
    for entry in shared_memory.glob(f"{_NAMED_AFTER_A_PID}*"):
        pid = entry.name.rsplit("_", 2)[1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            entry.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
