"""The master's gRPC service: messages in, the dispatcher's answers out. Nothing is decided here."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from twinpod.errors import Unreachable
from twinpod.master.batch_server import BatchServer
from twinpod.master.dispatcher import Dispatcher
from twinpod.records.life import Command, Reply
from twinpod.rpc.batches import layout_from_pb
from twinpod.rpc.channel import ask, client_channel
from twinpod.rpc.convert import (
    command_to_pb,
    pull_from_pb,
    reply_from_pb,
    work_batch_to_pb,
    work_result_from_pb,
)
from twinpod.rpc.v1 import half_pb2_grpc, master_pb2, master_pb2_grpc

LONGEST_PULL_S = 20.0


class MasterService(master_pb2_grpc.MasterServicer):
    """Served on :7400. Before the master has its epoch every call is Unreachable, which callers repeat."""

    def __init__(self, dispatcher: Dispatcher, batches: BatchServer) -> None:
        self._dispatcher, self._batches = dispatcher, batches

    async def PullWork(  # noqa: N802  # the proto's name
        self, request: master_pb2.PullRequest, context: Any
    ) -> master_pb2.WorkBatch:
        """Long poll for work."""
        self._begun()
        asked = pull_from_pb(request)
        return work_batch_to_pb(await self._dispatcher.pull(replace(asked, wait_s=min(asked.wait_s, LONGEST_PULL_S))))

    async def ReturnWork(  # noqa: N802  # the proto's name
        self, request: master_pb2.ReturnRequest, context: Any
    ) -> master_pb2.ReturnReply:
        """Stored when it answers."""
        self._begun()
        results = [work_result_from_pb(result) for result in request.results]
        return master_pb2.ReturnReply(stored=await self._dispatcher.give(request.epoch, results))

    async def FetchBatch(  # noqa: N802  # the proto's name
        self, request: master_pb2.BatchRequest, context: Any
    ) -> AsyncIterator[master_pb2.BatchPart]:
        """One rank's samples of the iteration under way."""
        self._begun()
        parts = self._batches.parts(request.epoch, request.iteration, request.rank, layout_from_pb(request))
        async with contextlib.aclosing(parts):
            async for part in parts:
                yield part

    def _begun(self) -> None:
        if self._dispatcher.epoch == 0:
            raise Unreachable("the master has no job epoch yet", where="master")


class GrpcHalf:
    """HalfPort over gRPC."""

    def __init__(self, address: str, tls: Path) -> None:
        self._address = address
        self._stub: Any = half_pb2_grpc.HalfStub(client_channel(address, tls))  # type: ignore[no-untyped-call]  # generated code

    async def execute(self, command: Command) -> Reply:
        """See HalfPort."""
        where = f"{self._address} {command.verb.value}"
        return reply_from_pb(
            await ask(self._stub.Execute, command_to_pb(command), timeout=command.deadline_s, where=where)
        )
