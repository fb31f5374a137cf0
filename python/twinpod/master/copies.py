"""A published version as the pods hold it, and what each half is told to serve. Pure.

Every hybrid pod published a complete copy of its own, the same to the bit. Its engine maps that one; an engine without
a trainer in its pod fetches one of them, and takes bytes from whoever else has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import xxhash

from twinpod.checkpoint.versions import compose_copies
from twinpod.records.weights import ServeOrder, ShardRef, ShardSource, VersionRef

MOST_SOURCES = 32  # named for a shard; others are named to other pods


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """One version, by pod; never empty."""

    by_pod: Mapping[str, VersionRef]

    @property
    def first(self) -> VersionRef:
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
        lines = (f"{shard.owner.rpartition('/')[2]} {shard.layout}" for shard in self.first.shards)
        return xxhash.xxh3_64_hexdigest("\n".join(lines).encode())

    @property
    def iteration(self) -> int:
        """Iterations trained into it."""
        return self.first.iteration

    @property
    def owners(self) -> tuple[str, ...]:
        """Addresses of all halves that published it."""
        return tuple(sorted({shard.address for copy in self.by_pod.values() for shard in copy.shards}))

    def serving(self, pod: str, peers: Iterable[str] = ()) -> ServeOrder:
        """What the engine of a pod is to serve: its own copy, or one of the others; helpers spread over them.

        peers: addresses of other halves that may have the version, because they serve it or soon will.
        """
        copies = tuple(self.by_pod.values())
        own = self.by_pod.get(pod) or copies[xxhash.xxh3_64_intdigest(pod.encode()) % len(copies)]
        if pod in self.by_pod:
            return ServeOrder(weights=own)
        sources = []
        for place, shard in enumerate(own.shards):
            others = dict.fromkeys(copy.shards[place].address for copy in copies if len(copy.shards) > place)
            known = tuple(dict.fromkeys((*others, *peers)))
            first = xxhash.xxh3_64_intdigest(f"{pod} {shard.owner}".encode()) % max(1, len(known))
            spread = (*known[first:], *known[:first]) if len(known) > MOST_SOURCES else known
            sources.append(ShardSource(owner=shard.owner, addresses=spread[:MOST_SOURCES]))
        return ServeOrder(weights=own, sources=tuple(sources))


def copies_of(version: int, epoch: int, iteration: int, shards: Iterable[ShardRef]) -> Copies:
    """The version that all pods' shards make. IntegrityError when two pods' weights differ."""
    return Copies(by_pod=compose_copies(version, epoch, iteration, shards))
