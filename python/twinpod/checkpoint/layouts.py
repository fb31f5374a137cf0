"""From references to records: the layouts that a half has at hand, and those that it asks its peers for, once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from twinpod.arena.layouts import from_content, layout_path, record_of
from twinpod.checkpoint.carriers import Carrier
from twinpod.checkpoint.plan import is_here
from twinpod.checkpoint.versions import check_version
from twinpod.errors import TwinpodError, Unreachable
from twinpod.records.weights import (
    ServeOrder,
    ServeRequest,
    ShardLayout,
    ShardRecord,
    ShardRef,
    VersionRef,
    WeightVersion,
)

ASK_S = 60.0  # for one layout from one peer


class Layouts:
    """Life: as long as the half. Layouts are kept by digest; a run has as many as its pods have ranks.

    `host`: by which others reach this pod. Use it in one event loop.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._known: dict[str, ShardLayout] = {}

    def at_hand(self, shards: Iterable[ShardRef]) -> tuple[ShardRecord, ...] | None:
        """The records, as far as nobody must be asked: by layouts known, and those of this pod's own ranks. None when
        one is missing."""
        records = []
        for shard in shards:
            layout = self._known.get(shard.layout) or self._of_this_pod(shard)
            if layout is None:
                return None
            records.append(record_of(shard, layout))
        return tuple(records)

    def served(self, order: ServeOrder) -> ServeRequest | None:
        """What the order asks for, when all layouts are at hand. ProtocolError when it is no whole version."""
        records = self.at_hand(order.weights.shards)
        if records is None:
            return None
        version = _version(order.weights, records)
        check_version(version)
        return ServeRequest(weights=version, sources=order.sources)

    async def ask(self, order: ServeOrder, carrier: Carrier) -> ServeRequest:
        """The same, after asking whoever has a shard for its layout. Unreachable (retryable) says what each said."""
        for shard in order.weights.shards:
            if self.at_hand([shard]) is None:
                self._known[shard.layout] = await self._from_peers(shard, order, carrier)
        found = self.served(order)
        assert found is not None
        return found

    async def _from_peers(self, shard: ShardRef, order: ServeOrder, carrier: Carrier) -> ShardLayout:
        named = [one for source in order.sources if source.owner == shard.owner for one in source.addresses]
        words = []
        for address in dict.fromkeys((shard.address, *named)):
            try:
                data = await carrier.layout(shard.layout, address, ASK_S)
                return from_content(data, shard.layout, address)
            except TwinpodError as error:
                words.append(error.line())
        raise Unreachable(
            f"its layout could not be had: {'; '.join(words)}",
            where=f"version {order.weights.version}, shard {shard.owner}",
            mend="it is tried again",
        )

    def _of_this_pod(self, shard: ShardRef) -> ShardLayout | None:
        """Left beside its arena by the rank that published it."""
        path = layout_path(Path(shard.path).parent, shard.layout)
        if not is_here(shard.address, self._host) or not path.is_file():
            return None
        return self._known.setdefault(shard.layout, from_content(path.read_bytes(), shard.layout, str(path)))


def _version(reference: VersionRef, shards: tuple[ShardRecord, ...]) -> WeightVersion:
    return WeightVersion(
        version=reference.version,
        epoch=reference.epoch,
        iteration=reference.iteration,
        digest=reference.digest,
        shards=shards,
    )
