"""What moves from the trainer to the engines: tensors, their parts, shards, versions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPart:
    """One part of a Hugging Face tensor, as it lies in an arena slot.

    `axis` is None for a tensor that is whole in this shard; otherwise the part covers
    `[start, start + shape[axis])` of `full_shape[axis]`.
    """

    name: str  # Hugging Face name, e.g. model.layers.0.self_attn.q_proj.weight
    dtype: str  # safetensors' names: F32, BF16, F16
    shape: tuple[int, ...]  # of this part
    full_shape: tuple[int, ...]  # of the whole tensor
    axis: int | None  # tensor-parallel concat axis
    start: int  # first index along `axis`; 0 when whole
    offset: int  # bytes from the start of the slot, a multiple of arena.ALIGNMENT
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLayout:
    """What one owner (a trainer rank) keeps in its arena; the same for every version of a run."""

    owner: str  # e.g. hybrid-0/rank-3
    slot_bytes: int  # size of one slot, page aligned
    parts: tuple[TensorPart, ...]  # by offset


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """One owner's bytes of one version: where they lie and what they must hash to."""

    layout: ShardLayout
    path: str  # arena file, as seen inside the pod that holds it
    slot: int
    digest: str  # "xxh3:" + 16 hex digits over the slot's parts, in order of offset
    address: str  # host:port of the half that serves it to peers


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightVersion:
    """A committed or staged version of the weights; `shards` tile every tensor exactly once."""

    version: int
    epoch: int  # job epoch of the master that ordered it
    iteration: int  # iterations trained into it; 0 for the initial weights
    digest: str  # over the shards' digests, in order of owner
    shards: tuple[ShardRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRef:
    """A shard record as it travels: the layout by its digest (`arena.layouts`), because it is the same for every
    version of a run and hundreds of times larger than the rest."""

    owner: str  # ShardLayout.owner
    layout: str  # digest of the layout without its owner
    path: str
    slot: int
    digest: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRef:
    """A weight version as it travels."""

    version: int
    epoch: int
    iteration: int
    digest: str
    shards: tuple[ShardRef, ...]  # in order of owner


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSource:
    """Who serves one shard's bytes, beside the half that its record names."""

    owner: str  # ShardLayout.owner
    addresses: tuple[str, ...]  # host:port of halves that may have it; asked in an order that the receiver chooses


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOrder:
    """The argument of a SERVE command: a version, and who else serves its shards and knows their layouts."""

    weights: VersionRef
    sources: tuple[ShardSource, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest:
    """A SERVE order whose layouts are known.

    A shard is in the half's own pod when the host of its record's `address` is the half's own host: then it is mapped
    from `path`. Any other shard is fetched, whatever its path says, because pods use the same paths.
    """

    weights: WeightVersion
    sources: tuple[ShardSource, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRequest:
    """Bytes of one shard of one version, asked of a half that may have them.

    The digest is what identifies them: a copy that another owner published serves as well.
    """

    owner: str
    version: int
    digest: str
    slot_bytes: int
    begin: int  # bytes from the start of the slot
    end: int  # the first byte that is not wanted
