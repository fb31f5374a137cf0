"""Proof of a version before it is used: every shard of this pod must hash to its published digest."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from twinpod.arena import Arena
from twinpod.errors import EnvironmentFault, IntegrityError
from twinpod.records.weights import ShardRecord, WeightVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a proof cost."""

    seconds: float
    nbytes: int


def verify_version(version: WeightVersion, *, threads: int | None = None) -> Verification:
    """Hash every shard through its arena, one after the other, `threads` (default: the usable cores) at each.

    IntegrityError names version, shard and both digests; EnvironmentFault a shard whose file is not in this pod.
    It is plain work for a processor: call it in a thread.
    """
    began = time.monotonic()
    workers = threads or len(os.sched_getaffinity(0))
    total = 0
    for shard in version.shards:
        _verify_shard(version.version, shard, workers)
        total += sum(part.nbytes for part in shard.layout.parts)
    return Verification(seconds=time.monotonic() - began, nbytes=total)


def _verify_shard(version: int, shard: ShardRecord, threads: int) -> None:
    where = f"version {version}, shard {shard.layout.owner}"
    try:
        arena = Arena.open(Path(shard.path), shard.layout)
    except FileNotFoundError as error:
        raise EnvironmentFault(
            f"its arena {shard.path} is not in this pod", where=where, mend=f"fetch it from {shard.address}"
        ) from error
    with arena:
        found = arena.digest(shard.slot, threads)
    if found != shard.digest:
        raise IntegrityError(
            f"its bytes have the digest {found}, {shard.digest} was published", where=where, mend="publish it again"
        )
