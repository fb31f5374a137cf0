"""A published version as the pods hold it, and what each half is told to serve. Pure.

Every hybrid pod published a complete copy of its own, the same to the bit. Its engine maps that one; an engine without
a trainer in its pod fetches one of them, and takes bytes from whoever else has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import xxhash

from twinpod.checkpoint.versions import compose_copies
from twinpod.records.weights import ServeRequest, ShardRecord, ShardSource, WeightVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """One version, by pod; never empty."""

    by_pod: Mapping[str, WeightVersion]

    @property
    def first(self) -> WeightVersion:
        """The copy of the first hybrid pod; number and digest are those of all."""
        return next(iter(self.by_pod.values()))

    @property
    def version(self) -> int:
        """Its number."""
        return self.first.version

    @property
    def digest(self) -> str:
        """What every copy hashes to."""
        return self.first.digest

    @property
    def layout(self) -> str:
        """How ranks share the tensors, as a digest: only digests of weights in the same layout can be compared."""
        lines = (
            f"{shard.layout.owner.rpartition('/')[2]} {part.name} {part.dtype} {part.shape} {part.axis} {part.start}"
            for shard in self.first.shards
            for part in shard.layout.parts
        )
        return xxhash.xxh3_64_hexdigest("\n".join(lines).encode())

    @property
    def iteration(self) -> int:
        """Iterations trained into it."""
        return self.first.iteration

    @property
    def owners(self) -> tuple[str, ...]:
        """Addresses of all halves that published it."""
        return tuple(sorted({shard.address for copy in self.by_pod.values() for shard in copy.shards}))

    def serving(self, pod: str, peers: Iterable[str] = ()) -> ServeRequest:
        """What the engine of a pod is to serve: its own copy, or one of the others; helpers spread over them.

        peers: addresses of other halves that may have the version, because they serve it or soon will.
        """
        copies = tuple(self.by_pod.values())
        own = self.by_pod.get(pod) or copies[xxhash.xxh3_64_intdigest(pod.encode()) % len(copies)]
        if pod in self.by_pod:
            return ServeRequest(weights=own)
        sources = []
        for place, shard in enumerate(own.shards):
            others = dict.fromkeys(copy.shards[place].address for copy in copies if len(copy.shards) > place)
            known = (*others, *peers)
            sources.append(ShardSource(owner=shard.layout.owner, addresses=tuple(dict.fromkeys(known))))
        return ServeRequest(weights=own, sources=tuple(sources))


def copies_of(version: int, epoch: int, iteration: int, shards: Iterable[ShardRecord]) -> Copies:
    """The version that all pods' shards make. IntegrityError when two pods' weights differ."""
    return Copies(by_pod=compose_copies(version, epoch, iteration, shards))
