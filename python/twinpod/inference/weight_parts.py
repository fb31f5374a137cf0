"""From a version's parts to whole tensors. No SGLang here; torch and the arena only.

A tensor that lies whole in one shard is handed on as a view of shared memory. A tensor that the trainer cut is handed
on as a `CutTensor`: it has the whole shape and dtype and no memory. The engine's own loader asks it for the range that
this rank keeps (`narrow`), by rules that only the engine knows (heads kept twice, padded vocabularies, padded widths),
and only that range is read: from one part without a copy, from several through a scratch buffer.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from twinpod.arena.file import Arena
from twinpod.arena.layout import ITEM_BYTES
from twinpod.errors import IntegrityError, ProtocolError
from twinpod.records.weights import ShardRecord, TensorPart, WeightVersion

__all__ = ["CutTensor", "Mappings", "WeightReader", "verify"]

_TORCH = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
Place = tuple[int, TensorPart]
"""Index of the shard, part."""


class CutTensor(torch.Tensor):  # type: ignore[misc]  # torch is not followed by mypy here
    """A tensor that lies in parts. `narrow` or a slice along `axis` reads that range; any other use reads everything.

    `take(begin, end)` gives the real tensor of a range along `axis`, valid until the next call of any CutTensor's.
    """

    axis: int
    take: Callable[[int, int], torch.Tensor]

    @staticmethod
    def __new__(
        cls, shape: tuple[int, ...], dtype: torch.dtype, axis: int, take: Callable[[int, int], torch.Tensor]
    ) -> CutTensor:
        """A tensor of this shape and dtype without memory."""
        made: CutTensor = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device="cpu")
        made.axis, made.take = axis, take
        return made

    def whole(self) -> torch.Tensor:
        """All of it, for a use that is not a range."""
        return self.take(0, self.shape[self.axis])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """What torch calls for every operation that meets a CutTensor."""
        if func is torch.ops.aten.slice.Tensor and isinstance(args[0], cls):
            tensor: CutTensor = args[0]
            dim, begin, end, step = args[1:] + (0, None, None, 1)[len(args) - 1 :]
            if dim % tensor.dim() == tensor.axis and step == 1:
                size = tensor.shape[tensor.axis]
                begin, end, _ = slice(begin, end).indices(size)
                return tensor.take(begin, max(begin, end))
        real = [arg.whole() if isinstance(arg, cls) else arg for arg in args]
        return func(*real, **(kwargs or {}))


class Mappings:
    """Arenas that stay mapped from one load to the next, so that their pages are mapped once an engine.

    Invariant: at most one mapping a path, and only of the file that lies there now; `only` forgets all others.
    """

    def __init__(self) -> None:
        self._arenas: dict[str, tuple[tuple[int, int, int], Arena]] = {}
        self._touched: set[tuple[str, int]] = set()

    def arena(self, shard: ShardRecord, version: int) -> Arena:
        """The shard's arena, its slot's pages mapped. ProtocolError when there is none."""
        try:
            seen = Path(shard.path).stat()
        except FileNotFoundError as error:
            raise _no_arena(shard, version) from error
        stamp = (seen.st_dev, seen.st_ino, seen.st_size)
        known = self._arenas.get(shard.path)
        if known is not None and known[0] == stamp and known[1].layout.slot_bytes == shard.layout.slot_bytes:
            arena = known[1]
        else:
            self._forget(shard.path)
            arena = _open(shard, version)
            self._arenas[shard.path] = (stamp, arena)
        if (shard.path, shard.slot) not in self._touched:
            arena.prefault(shard.slot)
            self._touched.add((shard.path, shard.slot))
        return arena

    def only(self, paths: set[str]) -> None:
        """Let go of every other arena."""
        for path in self._arenas.keys() - paths:
            self._forget(path)

    def close(self) -> None:
        """Let go of all."""
        self.only(set())

    def _forget(self, path: str) -> None:
        if path in self._arenas:
            self._arenas.pop(path)[1].close()
            self._touched = {one for one in self._touched if one[0] != path}


class WeightReader:
    """The tensors of one version. Maps every shard when made; views stay valid as long as their mapping."""

    def __init__(self, version: WeightVersion, mappings: Mappings) -> None:
        self.version = version
        mappings.only({shard.path for shard in version.shards})
        self._slots = [_tensor(mappings.arena(shard, version.version), shard.slot) for shard in version.shards]
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the version by its Hugging Face name, in the order of its first part.

        A tensor's content stays valid until the next one is asked for: consume it at once.
        """
        for name, places in self._by_name().items():
            first = places[0][1]
            if first.axis is None:
                yield name, self._view(places[0])
            else:
                yield name, self._cut(name, places, first.axis)

    def _by_name(self) -> dict[str, list[Place]]:
        found: dict[str, list[Place]] = {}
        for index, shard in enumerate(self.version.shards):
            for part in shard.layout.parts:
                found.setdefault(part.name, []).append((index, part))
        return found

    def _view(self, place: Place) -> torch.Tensor:
        index, part = place
        return self._slots[index].narrow(0, part.offset, part.nbytes).view(_TORCH[part.dtype]).view(part.shape)

    def _cut(self, name: str, places: list[Place], axis: int) -> CutTensor:
        """The tensor of these parts, after a look at whether they tile it."""
        first, at = places[0][1], 0
        places = sorted(places, key=lambda place: place[1].start)
        for _, part in places:
            agrees = (part.axis, part.full_shape, part.dtype) == (axis, first.full_shape, first.dtype)
            if not agrees or part.start != at:
                break
            at += part.shape[axis]
        if at != first.full_shape[axis]:
            raise ProtocolError(
                f"its parts tile {at} of {first.full_shape[axis]} indices along axis {axis}",
                where=f"version {self.version.version}, tensor {name}",
                mend="publish the version again: a shard is missing, doubled or of another layout",
            )

        def take(begin: int, end: int) -> torch.Tensor:
            return self._range(places, axis, begin, end)

        return CutTensor(first.full_shape, _TORCH[first.dtype], axis, take)

    def _range(self, places: list[Place], axis: int, begin: int, end: int) -> torch.Tensor:
        met = []
        for place in places:
            part = place[1]
            low, high = max(begin, part.start), min(end, part.start + part.shape[axis])
            if low < high:
                met.append((low, self._view(place).narrow(axis, low - part.start, high - low)))
        if len(met) == 1:
            return met[0][1]
        first = places[0][1]
        shape = list(first.full_shape)
        shape[axis] = end - begin
        joined = self._buffer(math.prod(shape) * ITEM_BYTES[first.dtype]).view(_TORCH[first.dtype]).view(shape)
        for low, piece in met:
            joined.narrow(axis, low - begin, piece.shape[axis]).copy_(piece)
        return joined

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
        raise _no_arena(shard, version) from error


def _no_arena(shard: ShardRecord, version: int) -> ProtocolError:
    return ProtocolError(
        f"its arena {shard.path} does not exist",
        where=f"version {version}, shard {shard.layout.owner}",
        mend="fetch the version again before loading it",
    )


def _tensor(arena: Arena, slot: int) -> torch.Tensor:
    """A slot's bytes, no copy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "not writable": we only read
        return torch.from_numpy(arena.slot(slot))


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
