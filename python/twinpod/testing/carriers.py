"""A carrier between shelves in one process, that breaks where a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from twinpod.checkpoint.shard_offers import ShardOffers
from twinpod.errors import Unreachable
from twinpod.records.weights import ShardRequest


class FakeCarrier:
    """`shelves` by address; who is not there is unreachable. `breaks` by address: after how many bytes its next
    streams end, one after the other; who `hangs` never sends. `asked`: address and first byte of every stream.
    """

    def __init__(self) -> None:
        self.shelves: dict[str, ShardOffers] = {}
        self.breaks: dict[str, list[int]] = {}
        self.hangs: set[str] = set()
        self.asked: list[tuple[str, int]] = []

    async def stream(self, request: ShardRequest, source: str, timeout_s: float) -> AsyncGenerator[bytes, None]:
        """See Carrier."""
        assert timeout_s > 0
        self.asked.append((source, request.begin))
        if source not in self.shelves:
            raise Unreachable("does not answer", where=source)
        if source in self.hangs:
            await asyncio.Event().wait()
        left = self.breaks[source].pop(0) if self.breaks.get(source) else request.end
        async for message in self.shelves[source].read(request):
            if len(message) >= left:
                yield message[:left]
                raise Unreachable("broke off", where=source)
            left -= len(message)
            yield message

    async def layout(self, digest: str, source: str, timeout_s: float) -> bytes:
        """See Carrier."""
        if source not in self.shelves:
            raise Unreachable("does not answer", where=source)
        return self.shelves[source].layout(digest)

    async def close(self) -> None:
        """See Carrier."""
