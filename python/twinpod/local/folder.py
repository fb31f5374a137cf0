"""The run folder: everything that a run leaves behind, and the lock that lets one run at a time use it.

lock          held while a run uses the folder; names its process
run.json      uid and wall seconds of the run; stays when a run is resumed
job.json      the RLJob as it runs, overrides applied
state/        books.sqlite: the whole memory of the run
snapshots/    durable resume states, tensorboard/, and export/ in the end
logs/         <pod>.<container>.log, etcd.log
pods/         what containers wrote into their own folders, kept for a look
etcd/         etcd's data
secrets/      keys and certificates of this start (mode 0700)
config/       ConfigMaps, hosts file
control.sock  takes the orders of `twinpod scale` while a run goes on
summary.json, reward.png   the end of a finished run
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from pathlib import Path

from twinpod.api.change_rules import CHANGEABLE_WHEN_STOPPED, Difference, differences
from twinpod.api.types import RLJob
from twinpod.errors import EnvironmentFault, InputError
from twinpod.master.books_read import begun, open_read_only


class RunFolder:
    """Paths of one run. Life: made, `lock()`ed by the launcher, unlocked when its process ends."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.state, self.snapshots, self.logs = self.root / "state", self.root / "snapshots", self.root / "logs"
        self.pods, self.etcd, self.secrets = self.root / "pods", self.root / "etcd", self.root / "secrets"
        self.config, self.job_file, self.run_file = self.root / "config", self.root / "job.json", self.root / "run.json"
        self.lock_file, self.summary, self.curve = (
            self.root / "lock",
            self.root / "summary.json",
            self.root / "reward.png",
        )
        self.books, self.export = self.state / "books.sqlite", self.snapshots / "export"
        self.tensorboard = self.snapshots / "tensorboard"
        self._lock: int | None = None

    def lock(self) -> None:
        """Makes the folder and takes its lock; EnvironmentFault names the process that has it."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = self.lock_file.read_text().strip() or "unknown"
            raise EnvironmentFault(
                f"another run uses this folder (process {owner})",
                where=str(self.root),
                mend="wait for it or stop it (Ctrl-C there), or name another folder with --out",
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def in_use(self) -> bool:
        """Whether a run has the folder now."""
        if not self.lock_file.exists():
            return False
        with self.lock_file.open() as probe:
            try:
                fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def prepare(self) -> None:
        """Makes the folders below."""
        for folder in (self.state, self.snapshots, self.logs, self.pods, self.etcd, self.config):
            folder.mkdir(exist_ok=True)
        for private in (self.secrets, self.etcd):
            private.mkdir(exist_ok=True)
            private.chmod(0o700)

    def uid(self) -> str:
        """The run's uid, made at its first start."""
        if not self.run_file.exists():
            write_whole(self.run_file, json.dumps({"uid": str(uuid.uuid4()), "seconds": 0.0}) + "\n")
        return str(json.loads(self.run_file.read_text())["uid"])

    def add_seconds(self, seconds: float) -> None:
        """Adds the wall seconds of one start of the run."""
        self.uid()
        known = json.loads(self.run_file.read_text())
        write_whole(self.run_file, json.dumps(known | {"seconds": known["seconds"] + seconds}) + "\n")

    def seconds(self) -> float:
        """Wall seconds of all starts that came to an end of their own."""
        return float(json.loads(self.run_file.read_text())["seconds"]) if self.run_file.exists() else 0.0

    def begun(self) -> bool:
        """Whether the run has made anything yet: before that, another job may have the folder."""
        if not self.books.exists():
            return False
        with contextlib.closing(open_read_only(self.books)) as db:
            return begun(db)

    def adopt(self, job: RLJob) -> tuple[Difference, ...] | None:
        """Records the job; None for a run that begins, else what was changed since its last start.

        InputError when the folder belongs to another job.
        """
        new, changed = job.as_manifest(), None
        if self.job_file.exists() and self.begun():
            changed = refuse_difference(json.loads(self.job_file.read_text()), new, str(self.root))
        write_whole(self.job_file, json.dumps(new, indent=2) + "\n")
        return changed


def refuse_difference(old: object, new: object, folder: str) -> tuple[Difference, ...]:
    """What may differ between two starts of a run, and does; InputError names the first field that may not."""
    found = differences(old, new)
    for one in found:
        if not any(f"{one.path}.".startswith(f"{field}.") for field in CHANGEABLE_WHEN_STOPPED):
            raise InputError(
                f"is {one.new!r}, but the run in {folder} was started with {one.old!r}",
                where=one.path,
                mend="give the old value to resume it, or another folder with --out to start anew",
            )
    return found


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that nobody ever sees half of it."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.rename(path)
