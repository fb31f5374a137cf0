"""Live parameters to a fetchable version: the owned parts, in Hugging Face form, in an arena slot, with their digest.

Every byte is read once from the parameters and written once into shared memory; its digest is taken right behind the
write, block by block, while the bytes are still in the processor's cache. `tests/bench/publish.py` holds this
to 0.4 of a plain memcpy.

Only the first copy of the model in each pod has arenas, so every pod holds a complete version of its own; of tensors
that tensor-parallel ranks replicate, tensor rank 0 publishes the copy.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from twinpod.arena.file import DIGEST_CHUNK, Arena
from twinpod.arena.layout import plan_layout
from twinpod.arena.layouts import write_layout
from twinpod.records.weights import ShardLayout, ShardRecord, TensorPart
from twinpod.trainer.convert.copy import megatron_view
from twinpod.trainer.convert.layout import Part
from twinpod.trainer.convert.plan import naming_of, plan_parts
from twinpod.trainer.megatron import RankModel

DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
CACHE_BLOCK = 1 << 20  # bytes copied before they are hashed: half of a core's second-level cache
WORTH_THREADS = 8 << 20  # bytes of a shard below which starting threads costs more than it saves
SLOTS = 2


class Publisher:
    """One rank's arena. Made once; `publish` overwrites the slot of two versions ago (version % 2)."""

    def __init__(self, rank: RankModel, path: Path, *, owner: str, address: str, threads: int) -> None:
        parameters = rank.parameters
        self._rank, self._address, self._threads = rank, address, threads
        self._parts = tuple(part for part in plan_parts(rank.shape, rank.place, naming_of(parameters)) if part.owned)
        self.layout = shard_layout(owner, self._parts, DTYPE_NAMES[rank.machine.dtype])
        path.parent.mkdir(parents=True, exist_ok=True)
        self._arena = Arena.create(path, self.layout, SLOTS)
        self.layout_digest = write_layout(path.parent, self.layout)  # found there by the halves of this pod

    def publish(self, version: int) -> ShardRecord:
        """Write the parameters as they are now into slot `version % 2` and say where they lie and what they hash to."""
        slot = version % SLOTS
        target = torch.from_numpy(self._arena.slot(slot))
        threads = self._threads if self.layout.slot_bytes >= WORTH_THREADS else 1
        digest = write_parts(self._rank.parameters, self._parts, self.layout, target, threads)
        return ShardRecord(
            layout=self.layout, path=str(self._arena.path), slot=slot, digest=digest, address=self._address
        )

    def close(self) -> None:
        """Unmap the arena; the file stays for whoever reads it."""
        self._arena.close()


def shard_layout(owner: str, parts: tuple[Part, ...], dtype: str) -> ShardLayout:
    """The arena layout of a rank's owned parts. Pure."""
    return plan_layout(
        owner,
        (
            TensorPart(
                name=part.name,
                dtype=dtype,
                shape=part.shape,
                full_shape=part.full_shape,
                axis=None if part.shape == part.full_shape else part.axis,
                start=part.start if part.shape != part.full_shape else 0,
                offset=0,
                nbytes=0,
            )
            for part in parts
        ),
    )


def write_parts(
    parameters: dict[str, Tensor], parts: tuple[Part, ...], layout: ShardLayout, slot: Tensor, threads: int
) -> str:
    """Write all parts into `slot` (uint8[slot_bytes]); returns the digest that `Arena.digest` would find there."""
    pieces = [
        piece
        for part, placed in zip(parts, layout.parts, strict=True)
        for piece in _pieces(parameters, part, placed, slot)
    ]
    inner = torch.get_num_threads()
    torch.set_num_threads(1)  # our threads share the work; a copy must not start more of its own
    try:
        with ThreadPoolExecutor(threads) as pool:  # threads: torch's copy and xxhash both release the GIL
            digests = list((pool.map if threads > 1 else map)(_write_and_hash, pieces))
    finally:
        torch.set_num_threads(inner)
    return "xxh3:" + xxhash.xxh3_64_hexdigest(b"".join(digests))


Piece = tuple[Tensor, Tensor]


def _pieces(parameters: dict[str, Tensor], part: Part, placed: TensorPart, slot: Tensor) -> list[Piece]:
    """`(source, target)` of each digest chunk of a part.

    A part that is not contiguous in its parameter (QKV) stays in one piece.
    """
    view = megatron_view(parameters, part)
    target = slot[placed.offset : placed.offset + placed.nbytes].view(view.dtype)
    if not view.is_contiguous():
        return [(view, target.view(view.shape))]
    flat, step = view.view(-1), DIGEST_CHUNK // view.element_size()
    return [(flat[i : i + step], target[i : i + step]) for i in range(0, flat.numel(), step)]


def _write_and_hash(piece: Piece) -> bytes:
    """Copy one piece; returns the digests of its chunks, one behind the other."""
    source, target = piece
    raw = target.view(-1).view(torch.uint8).numpy()
    if source.dim() > 1 or source.device.type != "cpu":
        target.copy_(source)
        return b"".join(xxhash.xxh3_64_digest(raw[i : i + DIGEST_CHUNK].data) for i in range(0, len(raw), DIGEST_CHUNK))
    block = CACHE_BLOCK // source.element_size()
    running = xxhash.xxh3_64()
    for i in range(0, source.numel(), block):
        target[i : i + block].copy_(source[i : i + block])
        running.update(raw[i * source.element_size() : (i + block) * source.element_size()].data)
    return running.digest()
