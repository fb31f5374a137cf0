"""Our side of the standby's pipe (protocol: `twinpod.inference.standby`): JSON lines out, JSON lines in, answers by
number.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinpod.errors import EngineFault
from twinpod_sidecar.children import Child, Children, ChildSpec, Exit

log = logging.getLogger(__name__)
OP_TIMEOUT_S = 30.0  # forking, pickling a few bytes
STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What a standby says of itself: whether a fork of it would live."""

    accelerators: bool = True  # engines run on accelerators here
    context: bool = False  # a library has initialised CUDA in it
    threads: int = 1
    imported: bool = True  # SGLang


def why_spawn(ready: Ready, *, sleep: bool) -> str:
    """Why an engine cannot be forked and has to be executed anew; empty when a fork will do. Pure.

    `sleep`: the engine's memory is to be given back and taken again (life cycle Sleep).
    """
    if sleep and ready.accelerators:
        return "the library that gives its memory back (torch_memory_saver) is preloaded when a program is executed"
    if ready.context:
        return "a library has made a CUDA context in the standby, which no fork survives"
    if ready.threads != 1:
        return f"the standby has {ready.threads} threads, and a fork copies one"
    if not ready.imported:
        return "the standby has not imported SGLang"
    return ""


class Standby:
    """One standby process. Life: `start`, then `ready` (an event), `gone` at its end; a new object for the next one.

    `on_exit(pid, status)` hears of engines that died without being told to.
    """

    def __init__(self, child: Child, on_exit: Callable[[int, int], None]) -> None:
        self._child, self._on_exit = child, on_exit
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.ready = asyncio.Event()
        self.imports_s = 0.0
        self.word = Ready()  # what it said of itself when it was ready
        self._reader = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    def start(cls, children: Children, spec: ChildSpec, on_exit: Callable[[int, int], None]) -> Standby:
        """Start the process; EnvironmentFault when the machine refuses."""
        assert spec.pipes, "a standby is talked to through pipes"
        return cls(children.start(spec), on_exit)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._child.pid

    async def gone(self) -> Exit:
        """How it ended, once it and its engines are gone."""
        ended = await self._child.wait()
        await self._reader
        return ended

    async def stop(self, grace_s: float) -> Exit:
        """End it; its engines end with it."""
        return await self._child.stop(grace_s)

    async def engine(
        self, arguments: Mapping[str, Any], log_file: Path, env: Mapping[str, str], *, spawn: bool = False
    ) -> int:
        """Pid of a new engine with these server arguments: forked, or executed anew with `spawn`."""
        answer = await self._ask(
            OP_TIMEOUT_S, op="start", args=dict(arguments), log=str(log_file), env=dict(env), spawn=spawn
        )
        return int(answer["pid"])

    async def kill(self, pid: int) -> float:
        """Kill an engine; returns the seconds until every process of it was observed gone."""
        answer = await self._ask(STOP_TIMEOUT_S + 2.0, op="stop", pid=pid, grace_s=STOP_TIMEOUT_S)
        return float(answer["seconds"])

    async def payload(self, manifest: Path, digest: str) -> str:
        """What SGLang's weight update wants to be sent for a manifest."""
        return str((await self._ask(OP_TIMEOUT_S, op="payload", manifest=str(manifest), digest=digest))["payload"])

    async def _ask(self, timeout_s: float, **message: Any) -> dict[str, Any]:
        if self._reader.done():
            raise EngineFault("the standby died", where="standby")
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._child.stdin.write((json.dumps({"id": number, **message}) + "\n").encode())
            self._child.stdin.flush()  # some hundred bytes into a pipe that is always read: it does not block
            async with asyncio.timeout(timeout_s):  # wait_for of Python 3.11 forgets a cancel that meets the answer
                found = await answer
        except TimeoutError as error:
            raise EngineFault(f"no answer to {message['op']} within {timeout_s:g} s", where="standby") from error
        except OSError as error:
            raise EngineFault(f"the pipe is broken: {error.strerror}", where="standby") from error
        finally:
            self._waiting.pop(number, None)
        if "error" in found:
            raise EngineFault(str(found["error"]), where="standby")
        return found

    async def _read(self) -> None:
        """Until the pipe ends; whoever waits then hears that the standby died."""
        reader = asyncio.StreamReader(limit=1 << 20)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._child.stdout)
        try:
            while line := await reader.readline():
                self._take(line)
        finally:
            transport.close()
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(EngineFault("the standby died", where="standby"))

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            log.warning("standby said what is no JSON: %r", line[:200])
            return
        match message.get("event"):
            case "ready":
                self.imports_s = float(message.get("imports_s", 0.0))
                self.word = Ready(
                    accelerators=message.get("platform") != "cpu",
                    context=bool(message.get("accelerator", False)),
                    threads=int(message.get("threads", 1)),
                    imported=bool(message.get("imported", True)),
                )
                self.ready.set()
            case "exit":
                self._on_exit(int(message["pid"]), int(message["status"]))
            case _:
                answer = self._waiting.get(message.get("id"))
                if answer is not None and not answer.done():
                    answer.set_result(message)
