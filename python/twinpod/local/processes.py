"""Starting, watching and ending one process, with or without namespaces of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twinpod.local import entry

KILL_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a container sees besides the machine's own files."""

    binds: tuple[tuple[str, str, bool], ...]  # source, target, read only; outer targets first
    keep: tuple[str, ...]  # paths that stay visible even when a bind covers a folder above them


class Process:
    """A child of the launcher. `inside`: it is `unshare`, and the process meant is its only child."""

    def __init__(self, child: asyncio.subprocess.Process, *, inside: bool) -> None:
        self._child, self._inside = child, inside

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self._child.returncode is not None

    async def wait(self) -> int:
        """Exit code when it ends; a signal's number, negative, when one ended it."""
        return await self._child.wait()

    async def stop(self, *, grace_s: float) -> int:
        """SIGTERM, `grace_s` to obey it, SIGKILL; returns the exit code. The kernel ends what it had started."""
        if not self.ended:
            self._signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(grace_s):
                    return await self._child.wait()
            except TimeoutError:
                self.kill()
        async with asyncio.timeout(KILL_TIMEOUT_S):
            return await self._child.wait()

    def kill(self) -> None:
        """SIGKILL to the outer process; `unshare --kill-child` and the PID namespace see to the rest."""
        with contextlib.suppress(ProcessLookupError):
            self._child.kill()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._target(), number)

    def _target(self) -> int:
        if not self._inside:
            return self._child.pid
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self._child.pid}/task/{self._child.pid}/children").read_text().split()
            if children:
                return int(children[0])
        return self._child.pid


async def start(command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> Process:
    """A plain child in its own session, its output appended to `log`."""
    with log.open("ab") as output:
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            start_new_session=True,
        )
    return Process(child, inside=False)


async def start_isolated(
    command: Sequence[str], *, environment: Mapping[str, str], sight: Sight, folder: str, log: Path
) -> Process:
    """A child in mount and PID namespaces of its own, in which it is process 1."""
    plan = {
        "binds": list(sight.binds),
        "keep": list(sight.keep),
        "command": list(command),
        "environment": dict(environment),
        "folder": folder,
    }
    wrapper = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    with log.open("ab") as output:
        child = await asyncio.create_subprocess_exec(
            *(*wrapper, sys.executable, "-I", "-S", entry.__file__),
            stdin=asyncio.subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has ended already: its exit code says so
        child.stdin.write(json.dumps(plan).encode())
        await child.stdin.drain()
    child.stdin.close()
    return Process(child, inside=True)
