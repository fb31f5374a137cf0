"""Carriers: how a shard that lies in another pod comes into this pod's arena.

A carrier moves bytes and nothing else. What to fetch, from whom, into which slot, and whether the bytes are right is
decided by its caller: it takes sources in the order it likes best, resumes where a transfer stopped, checks the
shard's digest itself before use, and takes another source when one fails. So a carrier needs no memory, and a lying
or dying peer costs a retry, never a wrong weight. The gRPC carrier (raw bytes with identity serialisers, 2 to 4 MiB a
message) and others such as Mooncake stand beside this file, each in one file, imported only when a job asks for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from twinpod.records.weights import ShardRecord


class Carrier(Protocol):
    """The caller is the fetch of an inference half."""

    def stream(self, shard: ShardRecord, source: str, start: int) -> AsyncIterator[memoryview]:
        """The shard's slot bytes from offset `start` to the end, in order, from the half at `source` (host:port).

        Raises `Unreachable` when the source breaks off; what was yielded before is good to keep.
        """
        ...

    async def close(self) -> None:
        """End all connections."""
        ...
