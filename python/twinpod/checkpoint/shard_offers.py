"""What a half serves to its peers: shards that lie in its pod's arenas, until their slots are written again.

A slot may be written again while it is streamed. Whoever writes in this process clears the slot first, and the stream
ends with WrongVersion; a writer in another process is not seen here, so the receiver believes nothing but the digest.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from pathlib import Path

from twinpod.arena import Arena
from twinpod.arena.layouts import content, digest_of
from twinpod.errors import EnvironmentFault, ProtocolError, WrongVersion
from twinpod.records.weights import ShardRecord, ShardRequest

MESSAGE_BYTES = 2 << 20


class ShardOffers:
    """Life: as long as the half. At most one version a slot of an arena. Use it in one event loop."""

    def __init__(self) -> None:
        self._offers: dict[tuple[str, int], tuple[int, ShardRecord]] = {}  # by path and slot
        self.bytes_served = 0

    def offer(self, version: int, shards: Iterable[ShardRecord]) -> None:
        """These lie in this pod and have their digests; what was offered from their slots before is gone."""
        for shard in shards:
            self._offers[shard.path, shard.slot] = (version, shard)

    def clear(self, path: str, slot: int) -> None:
        """The slot is about to be written."""
        self._offers.pop((path, slot), None)

    def clear_slot(self, slot: int) -> None:
        """This slot of every arena is about to be written."""
        self._offers = {place: offer for place, offer in self._offers.items() if place[1] != slot}

    def find(self, request: ShardRequest) -> ShardRecord:
        """The shard asked for, or a copy of it; WrongVersion when it is not, or no more, offered."""
        matches = [
            shard
            for version, shard in self._offers.values()
            if version == request.version
            and shard.digest == request.digest
            and shard.layout.slot_bytes == request.slot_bytes
        ]
        own = [shard for shard in matches if shard.layout.owner == request.owner]
        if not matches:
            held = sorted({str(version) for version, _ in self._offers.values()})
            raise WrongVersion(
                f"is not here; held: {', '.join(held) or 'nothing'}",
                where=f"version {request.version}, shard {request.owner}",
            )
        return (own or matches)[0]

    def layout(self, digest: str) -> bytes:
        """The content of a layout of what is offered, by its digest; WrongVersion when nothing lies that way."""
        seen = set()
        for _, shard in self._offers.values():
            if shard.layout.owner not in seen:
                seen.add(shard.layout.owner)
                data = content(shard.layout)
                if digest_of(data) == digest:
                    return data
        raise WrongVersion("is not here", where=f"layout {digest}")

    async def read(self, request: ShardRequest) -> AsyncGenerator[bytes, None]:
        """The bytes asked for, in messages of at most `MESSAGE_BYTES`.

        WrongVersion as soon as the slot has been cleared, at the latest behind the last byte.
        """
        shard = self.find(request)
        where = f"version {request.version}, shard {request.owner}"
        if not 0 <= request.begin <= request.end <= shard.layout.slot_bytes:
            raise ProtocolError(
                f"bytes {request.begin} to {request.end} are not within {shard.layout.slot_bytes}", where=where
            )
        try:
            arena = Arena.open(Path(shard.path), shard.layout)
        except FileNotFoundError as error:
            self.clear(shard.path, shard.slot)
            raise EnvironmentFault(f"its arena {shard.path} is gone", where=where) from error
        with arena:
            slot = arena.slot(shard.slot).data
            for begin in range(request.begin, request.end, MESSAGE_BYTES):
                message = bytes(slot[begin : min(begin + MESSAGE_BYTES, request.end)])
                self._still(shard, request.version, where)
                yield message
                self.bytes_served += len(message)
        self._still(shard, request.version, where)

    def _still(self, shard: ShardRecord, version: int, where: str) -> None:
        if self._offers.get((shard.path, shard.slot)) != (version, shard):
            raise WrongVersion("its slot is being written again", where=where)
