"""Owner of child processes: started so that none outlives us, ended with grace, reaped, and explained in words.

Theory of operation
-------------------
A half is process 1 of its container, or acts like it: it is a *subreaper*, so
whatever its children leave behind becomes its own. Each child is the leader of a session, with everything it starts
in its group unless that makes a session of its own (torchrun's ranks do). Ending a child is SIGTERM to its leader, a
grace, then SIGKILL to the group. When a child is gone, so must be its descendants: those that were handed to us are
orphans, and orphans are killed. If we are killed ourselves, the kernel kills the leaders (`launch.py`).

A child's end is seen through a pidfd on the event loop: no thread a child, and no race with a pid that is used again.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from twinpod.errors import EnvironmentFault

PR_SET_CHILD_SUBREAPER = 36
_LAUNCHER = str(Path(__file__).with_name("launch.py"))
_GONE_POLL_S = 0.005
_TAIL = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """What to start. `pipes`: stdin and stdout are ours to talk through; else stdin is empty and stdout goes to the
    log.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]  # the whole environment of the child
    log: Path  # stderr, and stdout without pipes; appended to
    pipes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a child ended. `status`: exit code, or minus the signal's number. `reason`: for a person."""

    status: int
    reason: str


class Children:
    """All children of this process. One of it a process; call inside a running event loop.

    Invariant: a pid is in `_owned` from its start until its `Exit` is known; every other child of ours is an orphan.
    """

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._owned: dict[int, Child] = {}

    def start(self, spec: ChildSpec) -> Child:
        """Start it; EnvironmentFault when its log cannot be written or the machine refuses another process."""
        command = [sys.executable, "-I", "-S", _LAUNCHER, str(os.getpid()), *spec.argv]
        try:
            spec.log.parent.mkdir(parents=True, exist_ok=True)
            with open(spec.log, "ab") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE if spec.pipes else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if spec.pipes else log,
                    stderr=log,
                    env=dict(spec.env),
                    start_new_session=True,
                )
        except OSError as error:
            raise EnvironmentFault(f"{spec.name} cannot be started: {error.strerror}", where=str(spec.log)) from error
        child = Child(spec, process, self._forget)
        self._owned[process.pid] = child
        return child

    async def stop_all(self, grace_s: float) -> None:
        """End every child that is left, all at the same time."""
        await asyncio.gather(*(child.stop(grace_s) for child in list(self._owned.values())))
        await self.end_orphans()

    async def end_orphans(self) -> None:
        """Kill and reap what dead children left behind, until nothing is left."""
        while orphans := [pid for pid in children_of(os.getpid()) if pid not in self._owned]:
            for pid in orphans:
                _kill(pid, signal.SIGKILL)
                _reap(pid)
            await asyncio.sleep(_GONE_POLL_S)

    def reap_orphans(self) -> None:
        """Reap orphans that have ended by themselves (on SIGCHLD), as process 1 must."""
        for pid in children_of(os.getpid()):
            if pid not in self._owned:
                _reap(pid)

    def _forget(self, pid: int) -> None:
        self._owned.pop(pid, None)


class Child:
    """One running child, until `wait` or `stop` has told how it ended. Made by `Children.start`."""

    def __init__(self, spec: ChildSpec, process: subprocess.Popen[bytes], forget: object) -> None:
        assert callable(forget)
        self.spec, self.pid, self._process, self._forget = spec, process.pid, process, forget
        self._oom_before = oom_kills()
        self._ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._pidfd = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)

    @property
    def stdin(self) -> IO[bytes]:
        """Our end of its stdin; only with pipes."""
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """Our end of its stdout; only with pipes."""
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return not self._ended.done()

    async def wait(self) -> Exit:
        """How it ended, once its whole group is gone."""
        ended = await asyncio.shield(self._ended)
        await end_group(self.pid)
        return ended

    async def stop(self, grace_s: float) -> Exit:
        """SIGTERM, `grace_s` seconds, SIGKILL to its group; returns when nothing of it is left."""
        if self.running:
            _kill(self.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.shield(self._ended), grace_s)
        except TimeoutError:
            _kill_group(self.pid)
        return await self.wait()

    def kill(self) -> None:
        """SIGKILL to its group, now."""
        _kill_group(self.pid)

    def _on_end(self) -> None:
        status = self._process.wait()
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._forget(self.pid)
        reason = exit_reason(status, oom=oom_kills() > self._oom_before)
        if line := last_line(self.spec.log):
            reason += f"; its last words: {line}"
        self._ended.set_result(Exit(status=status, reason=f"{self.spec.name} {reason}"))


def exit_reason(status: int, *, oom: bool) -> str:
    """An exit status in words; `oom`: the kernel has killed for memory in our group meanwhile. Pure."""
    try:
        ended = f"exited with code {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        ended = f"was killed by signal {-status}"
    if oom and status == -signal.SIGKILL:
        return "was killed by the kernel because the container ran out of memory (OOM); raise its memory limit"
    if oom and status:
        return f"{ended} after the container ran out of memory (OOM); raise its memory limit"
    return ended


def last_line(log: Path) -> str:
    """The last line of a log that says something, at most 300 characters; empty when there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return ""
    # Our own line says more than a launcher's around it; that torchrun saw a signal, more than the frame it draws.
    told = [line for line in lines if line.startswith("twinpod") and ": " in line]
    killed = [line for line in lines if line.startswith("traceback : Signal")]
    return next((line[:300] for line in reversed(told or killed or lines) if line), "")


def oom_kills() -> int:
    """How often the kernel has killed for memory in this control group; 0 where that cannot be read."""
    for path, word in (
        ("/sys/fs/cgroup/memory.events", "oom_kill"),
        ("/sys/fs/cgroup/memory/memory.oom_control", "oom_kill"),
    ):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        counts = [int(line.split()[1]) for line in lines if line.split()[:1] == [word]]
        if counts:
            return counts[0]
    return 0


def children_of(parent: int) -> list[int]:
    """Pids of a process's children, dead but unreaped ones included."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            stat = Path("/proc", name, "stat").read_text()
        except OSError:
            continue  # it is gone
        if int(stat.rpartition(")")[2].split()[1]) == parent:
            found.append(int(name))
    return found


async def end_group(leader: int) -> None:
    """Kill what is left of a group whose leader has ended, and wait until nothing is."""
    while _kill_group(leader):
        for pid in children_of(os.getpid()):
            if _group_of(pid) == leader and pid != leader:
                _reap(pid)
        await asyncio.sleep(_GONE_POLL_S)


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it ended by itself


def _kill_group(leader: int) -> bool:
    """Whether there was anything left to kill."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # not ours, or reaped already
