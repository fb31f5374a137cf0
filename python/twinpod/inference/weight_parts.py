"""From a version's parts to whole tensors, for one rank of the engine. No SGLang here; torch and the arena only.

A tensor that lies whole in one shard is handed on as a view of shared memory. A tensor that the trainer cut is
assembled in a scratch buffer that all of them share, and only the range that this rank reads is filled: pages of the
buffer that nobody writes are never made.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from twinpod.arena.file import Arena
from twinpod.arena.layout import ITEM_BYTES
from twinpod.errors import IntegrityError, ProtocolError
from twinpod.records.weights import ShardRecord, TensorPart, WeightVersion

__all__ = ["SPLIT", "EngineRank", "WeightReader", "needed_range", "verify"]

_TORCH = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_VOCABULARY_PADDING = 64  # SGLang pads the vocabulary to this multiple before it cuts it
SPLIT = {  # module of a parameter's name -> axis along which engine and trainer cut it
    "q_proj": 0,
    "k_proj": 0,
    "v_proj": 0,
    "gate_proj": 0,
    "up_proj": 0,
    "o_proj": 1,
    "down_proj": 1,
    "embed_tokens": 0,
    "lm_head": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRank:
    """Which part of each tensor an engine process keeps. `kv_heads`: key-value heads of the whole model."""

    rank: int
    size: int
    kv_heads: int


def needed_range(part: TensorPart, at: EngineRank) -> tuple[int, int]:
    """Indices [begin, end) along `part.axis` that this rank reads; everything where the cut is not known for sure."""
    if part.axis is None:
        raise ProtocolError("a whole tensor has no range", where=part.name)
    total = part.full_shape[part.axis]
    module = part.name.rsplit(".", 2)[-2] if part.name.count(".") else part.name
    if at.size == 1 or SPLIT.get(module) != part.axis:
        return 0, total
    if module in ("embed_tokens", "lm_head"):
        share = math.ceil(total / _VOCABULARY_PADDING) * _VOCABULARY_PADDING // at.size
        return min(at.rank * share, total), min((at.rank + 1) * share, total)
    ranks, index = at.size, at.rank
    if module in ("k_proj", "v_proj") and at.size > at.kv_heads:
        ranks, index = at.kv_heads, at.rank * at.kv_heads // at.size  # several ranks keep the same head
    if total % ranks:
        return 0, total
    return index * total // ranks, (index + 1) * total // ranks


class WeightReader:
    """The tensors of one version. Maps every shard when made; `close` unmaps (views that are alive keep their
    mapping).
    """

    def __init__(self, version: WeightVersion) -> None:
        self.version = version
        self._arenas = [_open(shard, version.version) for shard in version.shards]
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def tensors(self, at: EngineRank) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the version by its Hugging Face name, in the order of its first part.

        A tensor stays valid until the next one is asked for: consume it at once.
        """
        for name, places in self._by_name().items():
            first = places[0][2]
            if first.axis is None:
                yield name, self._view(*places[0])
            else:
                yield name, self._assemble(name, places, at)

    def close(self) -> None:
        """Let go of all mappings."""
        self._scratch = torch.empty(0, dtype=torch.uint8)
        for arena in self._arenas:
            arena.close()

    def _by_name(self) -> dict[str, list[tuple[int, int, TensorPart]]]:
        """(index of the shard, slot, part) of every tensor."""
        found: dict[str, list[tuple[int, int, TensorPart]]] = {}
        for index, shard in enumerate(self.version.shards):
            for part in shard.layout.parts:
                found.setdefault(part.name, []).append((index, shard.slot, part))
        return found

    def _view(self, index: int, slot: int, part: TensorPart) -> torch.Tensor:
        raw = self._arenas[index].slot(slot)[part.offset : part.offset + part.nbytes]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "not writable": we only read
            return torch.from_numpy(raw).view(_TORCH[part.dtype]).view(part.shape)

    def _assemble(self, name: str, places: list[tuple[int, int, TensorPart]], at: EngineRank) -> torch.Tensor:
        first = places[0][2]
        axis = first.axis
        if axis is None or any(part.axis != axis or part.full_shape != first.full_shape for _, _, part in places):
            raise ProtocolError(
                "its parts disagree about axis or shape", where=f"version {self.version.version}, tensor {name}"
            )
        begin, end = needed_range(first, at)
        whole = (
            self._buffer(math.prod(first.full_shape) * ITEM_BYTES[first.dtype])
            .view(_TORCH[first.dtype])
            .view(first.full_shape)
        )
        covered = 0
        for index, slot, part in places:
            low, high = max(begin, part.start), min(end, part.start + part.shape[axis])
            if low < high:
                source = self._view(index, slot, part).narrow(axis, low - part.start, high - low)
                whole.narrow(axis, low, high - low).copy_(source)
                covered += high - low
        if covered != end - begin:
            raise ProtocolError(
                f"its parts cover {covered} of {end - begin} indices along axis {axis}",
                where=f"version {self.version.version}, tensor {name}",
                mend="publish the version again: a shard is missing or doubled",
            )
        return whole

    def _buffer(self, nbytes: int) -> torch.Tensor:
        if self._scratch.numel() < nbytes:
            self._scratch = torch.empty(nbytes, dtype=torch.uint8)
        return self._scratch[:nbytes]


def _slots_in(shard: ShardRecord) -> int:
    """Slots of the arena file, told by its size (an arena of a half may have more than the trainer's)."""
    return Path(shard.path).stat().st_size // shard.layout.slot_bytes


def _open(shard: ShardRecord, version: int) -> Arena:
    try:
        return Arena.open(Path(shard.path), shard.layout, _slots_in(shard))
    except FileNotFoundError as error:
        raise ProtocolError(
            f"its arena {shard.path} does not exist",
            where=f"version {version}, shard {shard.layout.owner}",
            mend="fetch the version again before loading it",
        ) from error


def verify(version: WeightVersion, *, threads: int = 1) -> None:
    """Hash every shard and compare with what was published; IntegrityError names version, shard, expected and found."""
    for shard in version.shards:
        with _open(shard, version.version) as arena:
            found = arena.digest(shard.slot, threads)
        if found != shard.digest:
            raise IntegrityError(
                f"expected digest {shard.digest}, found {found}",
                where=f"version {version.version}, shard {shard.layout.owner} ({shard.path}, slot {shard.slot})",
                mend="fetch the shard from another owner",
            )
