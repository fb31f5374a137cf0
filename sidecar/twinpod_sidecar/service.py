"""What both halves serve by gRPC, and the dispatch of commands: each key is executed once, whoever asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

from twinpod.records.life import Command, HalfStatus, Reply
from twinpod.rpc import convert
from twinpod.rpc.v1 import half_pb2, half_pb2_grpc
from twinpod_sidecar.ledger import Known, Ledger, New, admit, settle

LONGEST_S = 3600.0  # for a command that names no deadline


class Half(Protocol):
    """A half, as its gRPC service sees it."""

    async def execute(self, command: Command) -> Reply:
        """Execute one command; StaleEpoch for an older epoch's."""
        ...

    def status(self) -> HalfStatus:
        """What the half says of itself now."""
        ...


class HalfService(half_pb2_grpc.HalfServicer):
    """The service `Half` over a half."""

    def __init__(self, half: Half) -> None:
        self._half = half

    async def Execute(self, request: half_pb2.Command, context: Any) -> half_pb2.Reply:  # noqa: N802  # gRPC's name
        """See protos."""
        return convert.reply_to_pb(await self._half.execute(convert.command_from_pb(request)))

    async def Status(self, request: half_pb2.StatusRequest, context: Any) -> half_pb2.HalfStatus:  # noqa: N802  # gRPC's name
        """See protos."""
        return convert.half_status_to_pb(self._half.status())


class CommandDispatcher:
    """Between the service and a machine: admits commands, keeps their deadlines, holds those who wait for an answer.

    `begin(command)` puts a new command to the machine; `expire(key)` tells it that a deadline is over; the machine's
    answer comes back by `settle`. A caller that goes away cancels nothing.
    """

    def __init__(self, begin: Callable[[Command], None], expire: Callable[[str], None]) -> None:
        self._begin, self._expire = begin, expire
        self.ledger = Ledger()
        self._waiting: dict[str, asyncio.Future[Reply]] = {}
        self._since: dict[str, float] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    async def execute(self, command: Command) -> Reply:
        """The answer to the command, whenever it comes."""
        self.ledger, verdict = admit(self.ledger, command)
        if isinstance(verdict, Known):
            return verdict.reply
        if isinstance(verdict, New):
            loop = asyncio.get_running_loop()
            answer: asyncio.Future[Reply] = loop.create_future()
            self._waiting[command.key] = answer
            self._since[command.key] = time.monotonic()
            seconds = command.deadline_s if command.deadline_s > 0 else LONGEST_S
            self._timers[command.key] = loop.call_later(seconds, self._expire, command.key)
            self._begin(command)  # may answer at once
            return await asyncio.shield(answer)
        return await asyncio.shield(self._waiting[command.key])

    def settle(self, key: str, error: str = "", *, retryable: bool = False, detail: str = "") -> None:
        """The machine's answer; a key that is not under way is ignored."""
        if key not in self._waiting:
            return
        seconds = time.monotonic() - self._since.pop(key)
        self._timers.pop(key).cancel()
        reply = Reply(key=key, error=error, retryable=retryable, seconds=seconds, detail=detail)
        self.ledger = settle(self.ledger, reply)
        self._waiting.pop(key).set_result(reply)
