"""A small version of weights in real arenas, made without a trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from twinpod.arena import Arena, plan_layout
from twinpod.arena.layouts import reference, write_layout
from twinpod.checkpoint.versions import compose, refer
from twinpod.records.weights import ServeOrder, ShardRecord, ShardSource, TensorPart, WeightVersion

SHAPE = (8, 16)


def small_version(
    folder: Path, version: int, *, epoch: int = 1, ranks: int = 2, address: str = "localhost:7401", rows: int = SHAPE[0]
) -> WeightVersion:
    """Two tensors, one cut over the ranks and one whole, written into the slot of the version.

    `rows`: of the tensor that is cut; each has 64 bytes.
    """
    shards = tuple(_shard(folder, version, rank, ranks, address, (rows, SHAPE[1])) for rank in range(ranks))
    return compose(version, epoch, version, shards)


def order_of(version: WeightVersion, sources: tuple[ShardSource, ...] = ()) -> ServeOrder:
    """What the master would order; the layouts lie beside the arenas, as ranks leave them."""
    shards = tuple(reference(one, write_layout(Path(one.path).parent, one.layout)) for one in version.shards)
    return ServeOrder(weights=refer(version.version, version.epoch, version.iteration, shards), sources=sources)


def spoil(version: WeightVersion, shard: int = 0) -> None:
    """Change one byte of a shard behind the back of its digest."""
    record = version.shards[shard]
    with Arena.open(Path(record.path), record.layout, writable=True) as arena:
        arena.slot(record.slot)[0] ^= 1


def _shard(folder: Path, version: int, rank: int, ranks: int, address: str, shape: tuple[int, int]) -> ShardRecord:
    rows = shape[0] // ranks
    parts = [_part("cut.weight", (rows, shape[1]), shape, 0 if ranks > 1 else None, rank * rows if ranks > 1 else 0)]
    if rank == 0:
        parts.append(_part("whole.bias", (shape[1],), (shape[1],), None, 0))
    layout = plan_layout(f"hybrid-0/rank-{rank}", parts)
    path = folder / f"rank-{rank}.arena"
    with Arena.open(path, layout, writable=True) if path.exists() else Arena.create(path, layout) as arena:
        for part in layout.parts:
            arena.part(version % 2, part)[...] = np.float32(version + rank)
        digest = arena.digest(version % 2)
    return ShardRecord(layout=layout, path=str(path), slot=version % 2, digest=digest, address=address)


def _part(name: str, shape: tuple[int, ...], full: tuple[int, ...], axis: int | None, start: int) -> TensorPart:
    return TensorPart(name=name, dtype="F32", shape=shape, full_shape=full, axis=axis, start=start, offset=0, nbytes=0)
