"""Carriers: how a shard that lies in another pod comes into this pod's arena.

A carrier moves bytes and nothing else. What to fetch, from whom, into which slot, and whether the bytes are right is
decided by its caller (`checkpoint.plan` and `checkpoint.fetch`): it takes sources in the order it likes best, resumes
where a transfer stopped, checks the shard's digest itself before use, and takes another source when one fails. So a
carrier needs no memory, and a lying or dying peer costs a retry, never a wrong weight. The gRPC carrier stands in
`grpc.py`; others such as Mooncake go beside it, each in one file, imported only when a job asks for it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from twinpod.records.weights import ShardRequest


class Carrier(Protocol):
    """The caller is the fetch of an inference half."""

    def stream(self, request: ShardRequest, source: str, timeout_s: float) -> AsyncGenerator[bytes, None]:
        """The bytes `[begin, end)` of the shard's slot, in order, from the half at `source` (host:port), within
        `timeout_s` seconds.

        Raises a TwinpodError when the source refuses or breaks off; what was yielded before is good to keep. A stream
        that ends early is the caller's to notice.
        """
        ...

    async def layout(self, digest: str, source: str, timeout_s: float) -> bytes:
        """The content of the layout that the digest names (`arena.layouts`), from the half at `source`. Unproved."""
        ...

    async def close(self) -> None:
        """End all connections."""
        ...
