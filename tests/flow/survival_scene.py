"""A small run of local mode as somebody sees who wants to kill parts of it: its processes, its phase, its books.

Theory of operation. `Run` is `twinpod run --local` as a subprocess. Everything that it starts descends from it, in
whatever namespaces: `/proc` of the outermost one shows all, and command lines tell who is who. Where the run stands is
read from the books; what stands there was written by the master of the epoch that stands beside it, so after a death
the word is old until a newer epoch speaks: `Scene` is told with `forget()`, and says STARTING meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

MANIFEST = """
apiVersion: twinpod.dev/v1alpha1
kind: RLJob
metadata: {{name: {name}}}
spec:
  iterations: 1000
  seed: {seed}
  model:
    config: {{architecture: qwen2, hiddenSize: 16, layers: 1, heads: 2, kvHeads: 2, ffnSize: 32, maxPositions: 32}}
    tokenizer: {{characters: "abcd="}}
  dataset:
    entryPoint: {{target: "twinpod.sampling.letters:reverse", settings: {{letters: 3, alphabet: 4}}}}
    template: "{{prompt}}="
    size: {prompts}
    heldOut: 4
  algorithm: {{groupSize: 2, groupsPerIteration: 2, learningRate: "5e-4"}}
  rollout: {{maxTokens: 4, segmentTokens: 2, groupsInFlight: 4}}
  reward: {{kind: prefix}}
  hybrid: {{sharedMemory: 64Mi, lifeCycle: {life_cycle}, inference: {{kvTokens: 1024}}}}
  storage: {{snapshotEvery: 2}}
  failurePolicy: {{maxRestarts: 1000}}
"""
PR_SET_PDEATHSIG = 1
PROMPTS = 24  # of the data set; several passes over it in one campaign


class Process(StrEnum):
    """Who can be killed."""

    MASTER = "master"
    TRAINING_HALF = "training half"
    AGENT = "torchrun agent"
    RANK = "trainer rank"
    INFERENCE_HALF = "inference half"
    STANDBY = "standby"
    ENGINE = "engine"
    SCHEDULER = "engine scheduler"
    DETOKENIZER = "engine detokenizer"
    WORKER = "rollout worker"
    ETCD = "etcd"
    LAUNCHER = "launcher"
    FRONT = "front"


class Moment(StrEnum):
    """When: the phases of the books' Progress, as a person would group them."""

    STARTING = "starting"
    GENERATE = "generate"
    TRAIN = "train"
    WEIGHTS = "weights"
    SWITCH = "switch"
    SNAPSHOT = "snapshot"
    COMMIT = "commit"
    FINISH = "finish"


MOMENTS = {
    "start": Moment.STARTING,
    "load": Moment.STARTING,
    "stopped": Moment.STARTING,
    "serve": Moment.SWITCH,
    "rest": Moment.SWITCH,
    "switch": Moment.SWITCH,
    "generate": Moment.GENERATE,
    "train": Moment.TRAIN,
    "publish": Moment.WEIGHTS,
    "snapshot": Moment.SNAPSHOT,
    "commit": Moment.COMMIT,
    "export": Moment.FINISH,
    "evaluate": Moment.FINISH,
    "done": Moment.FINISH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One look into the books."""

    moment: Moment
    phase: str
    epoch: int
    iteration: int
    commits: int  # id of the newest commit, rolled back ones included
    commit_epoch: int  # of the master that made it


def until(condition: Callable[[], T | None], within_s: float, every_s: float = 0.05) -> T | None:
    """The first answer of `condition` that is true, or None when `within_s` seconds brought none: the one place that
    waits.
    """
    pause, deadline = threading.Event(), time.monotonic() + within_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            return None
        pause.wait(every_s)
    return answer


class Scene:
    """The books of a run, looked at while others write them."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "state/books.sqlite"
        self._db: sqlite3.Connection | None = None
        self._floor = 1  # epochs below belong to masters that are dead

    def forget(self) -> None:
        """The master of the present epoch is as good as dead."""
        self._floor = self.look().epoch + 1

    def look(self) -> Sight:
        """Where the run stands; STARTING while nobody has said anything."""
        said, commits, commit_epoch = self._read()
        epoch, phase = int(said.get("epoch", 0)), str(said.get("phase", "start"))
        moment = MOMENTS[phase] if epoch >= self._floor else Moment.STARTING
        return Sight(
            moment=moment,
            phase=phase,
            epoch=epoch,
            iteration=int(said.get("iteration", 0)),
            commits=commits,
            commit_epoch=commit_epoch,
        )

    def _read(self) -> tuple[dict[str, Any], int, int]:
        with contextlib.suppress(sqlite3.OperationalError):
            if self._db is None and self._file.exists():
                self._db = sqlite3.connect(f"file:{self._file}?mode=ro", uri=True, isolation_level=None, timeout=10)
            if self._db is not None:
                row = self._db.execute(_LOOK).fetchone()
                return json.loads(row[0] or "{}"), row[1] or 0, row[2] or 0
        return {}, 0, 0


_LOOK = (
    "SELECT (SELECT value FROM meta WHERE key = 'progress'), (SELECT max(id) FROM iterations),"
    " (SELECT epoch FROM iterations ORDER BY id DESC LIMIT 1)"
)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Run:
    """`twinpod run --local` in a folder, again and again. Life: `start`, maybe more of them, `close`."""

    def __init__(self, folder: Path, *, life_cycle: str = "Restart", seed: int = 0) -> None:
        self.folder, self.manifest, self.output = folder, folder.with_suffix(".yaml"), folder.with_suffix(".log")
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.manifest.write_text(MANIFEST.format(name=folder.name, seed=seed, prompts=PROMPTS, life_cycle=life_cycle))
        self._front: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self, iterations: int) -> None:
        """The same command; it goes on where the last one ended."""
        command = [sys.executable, "-m", "twinpod.cli", "run", str(self.manifest), "--local", "--no-live", "--no-check"]
        with self.output.open("ab") as output:
            self._front = subprocess.Popen(
                [*command, "--out", str(self.folder), "--iterations", str(iterations)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  # one thread; a hunter that is killed leaves no run behind
            )
        self.starts += 1

    def code(self) -> int | None:
        """Exit code of the last start, None while it runs."""
        assert self._front is not None
        return self._front.poll()

    def close(self) -> None:
        """Ends what still runs; the kernel takes the rest along."""
        if self._front is not None:
            self._front.kill()
            self._front.wait()

    def pids(self) -> dict[Process, int]:
        """Who runs now."""
        assert self._front is not None
        found: dict[Process, int] = {}
        if self._front.poll() is None:
            for pid, parent, command in family(self._front.pid):
                if (who := who_is(pid, command, parent, found)) is not None:
                    found.setdefault(who, pid)
        return found

    def last_words(self, lines: int = 15) -> str:
        """The end of what the command printed."""
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-lines:])


def family(root: int) -> Iterator[tuple[int, int, str]]:
    """A process and all its descendants, parents first: pid, parent's pid, command line."""
    line = [(root, 0)]
    while line:
        pid, parent = line.pop(0)
        if command := command_of(pid):
            yield pid, parent, command
            line += [(child, pid) for child in children_of(pid)]


def command_of(pid: int) -> str:
    """Its command line; empty when it has ended, reaped or not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def children_of(pid: int) -> list[int]:
    """Of all its threads."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as children:
                found += [int(word) for word in children.read().split()]
    return found


def engine_family(known: dict[Process, int]) -> dict[Process, int]:
    """The processes of the engine that is there now, from the standby that is known: fast, as engines come and go."""
    engines = children_of(known.get(Process.STANDBY, 0))
    if known.get(Process.ENGINE) in engines and all(who in known for who in _ENGINES):
        return {who: known[who] for who in _ENGINES}
    found: dict[Process, int] = {}
    for engine in engines:
        titles = {one: command_of(one) for one in children_of(engine)}
        found[Process.ENGINE] = engine
        found |= {who: one for one, title in titles.items() for mark, who in _BY_TITLE if mark in title}
    return found


_ENGINES = (Process.ENGINE, Process.SCHEDULER, Process.DETOKENIZER)
_BY_COMMAND = (
    ("-m twinpod.master", Process.MASTER),
    ("twinpod_sidecar training", Process.TRAINING_HALF),
    ("twinpod_sidecar inference", Process.INFERENCE_HALF),
    ("-m torch.distributed.run", Process.AGENT),
    ("-m twinpod.trainer", Process.RANK),
    ("-m twinpod.rollout", Process.WORKER),
)
_BY_TITLE = (("scheduler", Process.SCHEDULER), ("detoken", Process.DETOKENIZER))  # SGLang's names for its processes


def who_is(pid: int, command: str, parent: int, known: dict[Process, int]) -> Process | None:
    """Which process this is, from its command line and its parent. `known`: those found before it."""
    if parent == 0:
        return Process.FRONT
    if parent == known.get(Process.FRONT):
        return Process.LAUNCHER
    if command.startswith(("unshare ", "/usr/bin/unshare ")) or "launch.py" in command:
        return None  # on its way to become somebody
    if "/etcd " in command.split(" --", 1)[0] + " ":
        return Process.ETCD
    if parent == known.get(Process.STANDBY):
        return Process.ENGINE
    if parent == known.get(Process.ENGINE):
        return next((who for mark, who in _BY_TITLE if mark in command), None)
    if "-m twinpod.inference.standby" in command:
        return Process.STANDBY
    return next((who for mark, who in _BY_COMMAND if mark in command), None)


def leftovers(folder: Path) -> list[str]:
    """What a run has left on the machine: processes that know its folder, mounts below it."""
    found = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                said = entry.joinpath("cmdline").read_bytes() + entry.joinpath("mountinfo").read_bytes()
                if str(folder).encode() in said:
                    found.append(f"process {entry.name}: {said[:200]!r}")
    return found
