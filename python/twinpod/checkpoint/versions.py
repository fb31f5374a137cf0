"""From shard records to a version: proof that nothing is missing, doubled or of the wrong shape. Pure."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from twinpod.arena.file import combined_digest
from twinpod.errors import IntegrityError, ProtocolError
from twinpod.records.weights import ShardRecord, ShardRef, TensorPart, VersionRef, WeightVersion


def compose(version: int, epoch: int, iteration: int, shards: Iterable[ShardRecord]) -> WeightVersion:
    """The version that the shards make, in order of owner, with their combined digest.

    ProtocolError names the tensor (or the owner) when the parts do not tile every tensor exactly once.
    """
    ordered = tuple(sorted(shards, key=lambda shard: shard.layout.owner))
    _check_owners([shard.layout.owner for shard in ordered], version)
    check_tiling([part for shard in ordered for part in shard.layout.parts], where=f"version {version}")
    return WeightVersion(
        version=version,
        epoch=epoch,
        iteration=iteration,
        digest=combined_digest([shard.digest for shard in ordered]),
        shards=ordered,
    )


def _check_owners(owners: Sequence[str], version: int) -> None:
    if doubled := sorted({one for one, other in itertools.pairwise(owners) if one == other}):
        raise ProtocolError(f"{', '.join(doubled)} published more than one shard", where=f"version {version}")
    if not owners:
        raise ProtocolError("no shard was published", where=f"version {version}")


def refer(version: int, epoch: int, iteration: int, shards: Iterable[ShardRef]) -> VersionRef:
    """The same of references. That the parts tile every tensor is found by whoever knows the layouts: each half that
    is to serve the version (`check_version`)."""
    ordered = tuple(sorted(shards, key=lambda shard: shard.owner))
    _check_owners([shard.owner for shard in ordered], version)
    digest = combined_digest([shard.digest for shard in ordered])
    return VersionRef(version=version, epoch=epoch, iteration=iteration, digest=digest, shards=ordered)


def compose_copies(version: int, epoch: int, iteration: int, shards: Iterable[ShardRef]) -> Mapping[str, VersionRef]:
    """The version as each pod holds it, by pod, in order of pod.

    IntegrityError names two pods whose weights differ: data-parallel copies must be the same to the bit.
    """
    by_pod: dict[str, list[ShardRef]] = defaultdict(list)
    for shard in shards:
        by_pod[pod_of(shard.owner)].append(shard)
    copies = {
        pod: refer(version, epoch, iteration, own)
        for pod, own in sorted(by_pod.items(), key=lambda one: _natural(one[0]))
    }
    if not copies:
        raise ProtocolError("no shard was published", where=f"version {version}")
    first = next(iter(copies))
    for pod, copy in copies.items():
        if copy.digest != copies[first].digest:
            raise IntegrityError(
                f"{first} has the weights {copies[first].digest}, {pod} has {copy.digest}: the trainer's copies have"
                " gone apart",
                where=f"version {version}",
                mend="resume from the last snapshot, on machines of one kind",
            )
    return copies


def pod_of(owner: str) -> str:
    """The pod that published a shard: what stands before the slash in its owner's name."""
    return owner.rpartition("/")[0]


def _natural(pod: str) -> tuple[int, str]:
    """hybrid-2 before hybrid-10."""
    return len(pod), pod


def check_version(version: WeightVersion) -> None:
    """ProtocolError when a version that came from elsewhere is not what `compose` would make of its shards."""
    again = compose(version.version, version.epoch, version.iteration, version.shards)
    if again.digest != version.digest:
        raise ProtocolError(
            f"its digest is {version.digest}, its shards combine to {again.digest}", where=f"version {version.version}"
        )


def check_tiling(parts: Sequence[TensorPart], where: str) -> None:
    """ProtocolError unless the parts cover every tensor that they name exactly once."""
    tensors: dict[str, list[TensorPart]] = defaultdict(list)
    for part in parts:
        tensors[part.name].append(part)
    for name, pieces in tensors.items():
        if fault := tiling_fault(pieces):
            raise ProtocolError(f"{name} {fault}", where=where)


def tiling_fault(pieces: Sequence[TensorPart]) -> str:
    """What is wrong with the parts of one tensor, in words; empty when they tile it exactly once."""
    first = pieces[0]
    if len({(piece.full_shape, piece.dtype) for piece in pieces}) > 1:
        return "is published with different shapes or dtypes: " + ", ".join(
            sorted({f"{piece.dtype}{list(piece.full_shape)}" for piece in pieces})
        )
    axes = {piece.axis for piece in pieces}
    if axes == {None}:
        if len(pieces) > 1:
            return f"is published whole by {len(pieces)} owners"
        return (
            ""
            if first.shape == first.full_shape
            else f"is said to be whole but has {list(first.shape)} of {list(first.full_shape)}"
        )
    if len(axes) > 1:
        return f"is cut along different axes: {sorted(str(axis) for axis in axes)}"
    return _cover_fault(pieces, first)


def _cover_fault(pieces: Sequence[TensorPart], first: TensorPart) -> str:
    axis, full = first.axis, first.full_shape
    if axis is None or not 0 <= axis < len(full):
        return f"has no axis {axis}"
    end = 0
    for piece in sorted(pieces, key=lambda piece: piece.start):
        expected = (*full[:axis], piece.shape[axis] if len(piece.shape) == len(full) else -1, *full[axis + 1 :])
        if piece.shape != expected:
            return f"has a part of shape {list(piece.shape)} that does not fit {list(full)} along axis {axis}"
        if piece.start > end:
            return f"lacks rows {end} to {piece.start - 1} of axis {axis}"
        if piece.start < end:
            return f"has rows {piece.start} to {end - 1} of axis {axis} twice"
        end = piece.start + piece.shape[axis]
    return "" if end == full[axis] else f"lacks rows {end} to {full[axis] - 1} of axis {axis}"
