"""The first weights of a run: from a Hugging Face folder, or random and the same in every layout.

Random weights are drawn a tensor at a time, each from a generator seeded by the seed and the tensor's Hugging Face
name. So they do not depend on the order of drawing nor on which rank draws, and a rank draws only the tensors of its
own stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import xxhash
from megatron.core import parallel_state
from safetensors import SafetensorError, safe_open
from torch import Tensor

from twinpod.api.safetensors_header import AGAIN, stored_tensors
from twinpod.errors import EnvironmentFault, InputError, TwinpodError
from twinpod.records.model_shape import ModelShape
from twinpod.rpc.errors import pack, unpack
from twinpod.trainer.convert.copy import begin_import, import_all, import_local
from twinpod.trainer.convert.layout import Part
from twinpod.trainer.convert.plan import naming_of, plan_parts
from twinpod.trainer.place import Place
from twinpod.trainer.wire import broadcast

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


def load_random(parameters: Mapping[str, Tensor], shape: ModelShape, place: Place, seed: int) -> None:
    """Fill a rank's parameters with the random model `seed`."""
    parts = plan_parts(shape, place, naming_of(parameters))
    shapes = {part.name: part.full_shape for part in parts}
    import_all(parameters, parts, lambda name: random_tensor(name, shapes[name], seed, shape.init_std))


def random_tensor(name: str, full_shape: tuple[int, ...], seed: int, std: float) -> Tensor:
    """One full tensor, as transformers' `_init_weights` would: norms 1, biases 0, matrices normal with `std`.

    Float32.
    """
    if name.endswith("norm.weight"):
        return torch.ones(full_shape)
    if name.endswith(".bias"):
        return torch.zeros(full_shape)
    generator = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(f"{seed}/{name}".encode()) >> 1)
    return torch.randn(full_shape, generator=generator) * std


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """The ranks that hold the same parts of the model, one a data-parallel copy. `group` moves host memory (gloo)."""

    group: dist.ProcessGroup
    rank: int
    size: int


def data_peers(*, on_cpu: bool) -> Peers:
    """This rank's, in Megatron's layout."""
    group = parallel_state.get_data_parallel_group() if on_cpu else parallel_state.get_data_parallel_group_gloo()
    return Peers(group=group, rank=dist.get_rank(group), size=dist.get_world_size(group))


def load_folder(
    parameters: Mapping[str, Tensor], shape: ModelShape, place: Place, folder: Path, peers: Peers | None = None
) -> int:
    """Fill a rank's parameters from the safetensors files of a Hugging Face folder; returns the bytes that it read.

    A rank reads only what its tensor-parallel part needs. Of `peers` one reads each part and the others get it from
    there: the folder is read once, however many copies train. Collective over `peers`, which all raise when one fails.
    """
    parts = plan_parts(shape, place, naming_of(parameters))
    stored = FolderParts(folder, parts)
    with torch.no_grad():
        begin_import(parameters, parts)
        if peers is not None and peers.size > 1:
            _relay(parameters, parts, stored, peers)
        else:
            for part in parts:
                import_local(parameters, part, stored.read(part))
    return stored.read_bytes


def _relay(parameters: Mapping[str, Tensor], parts: Sequence[Part], stored: FolderParts, peers: Peers) -> None:
    """Each part from its reader to all. A reader that fails goes on with zeros: nobody must wait for it in vain."""
    readers = deal_parts([math.prod(part.shape) for part in parts], peers.size)
    failure = b""
    with ThreadPoolExecutor(1) as ahead:  # reads this rank's next part while the others' come in
        mine = iter([part for part, reader in zip(parts, readers, strict=True) if reader == peers.rank])
        coming = ahead.submit(stored.read, first) if (first := next(mine, None)) else None
        for part, reader in zip(parts, readers, strict=True):
            piece = None
            if reader == peers.rank:
                assert coming is not None
                try:
                    piece = coming.result()
                except TwinpodError as error:
                    failure = failure or pack(error)
                coming = ahead.submit(stored.read, later) if (later := next(mine, None)) else None
            if piece is None:
                piece = torch.zeros(part.shape, dtype=stored.dtype(part))
            if piece.numel():  # a rank of nothing but padding of the vocabulary has none
                raw = piece.view(-1).view(torch.uint8)
                dist.broadcast(raw, src=dist.get_global_rank(peers.group, reader), group=peers.group)
                import_local(parameters, part, piece)
    failed = torch.zeros(peers.size, dtype=torch.int64)
    failed[peers.rank] = len(failure)
    dist.all_reduce(failed, group=peers.group)
    for one in failed.nonzero()[:1, 0].tolist():
        source = dist.get_global_rank(peers.group, one)
        raise unpack(broadcast(failure, source, peers.group, speaks=one == peers.rank))


def deal_parts(sizes: Sequence[int], ranks: int) -> list[int]:
    """Which rank reads each part: the one that has the least to read so far. Pure."""
    load, readers = [0] * ranks, []
    for size in sizes:
        readers.append(load.index(min(load)))
        load[readers[-1]] += size
    return readers


class FolderParts:
    """Reads parts of a folder's tensors. InputError for a folder without the tensors that `parts` name."""

    def __init__(self, folder: Path, parts: Sequence[Part]) -> None:
        self.folder, self.read_bytes = folder, 0
        self._stored = stored_tensors(folder)
        missing = sorted({part.name for part in parts} - self._stored.keys())
        if missing:
            raise InputError(f"lacks {len(missing)} tensors, {missing[0]} among them", where=str(folder))
        for part in parts:
            found = self._stored[part.name].shape
            if found != part.full_shape:
                raise InputError(
                    f"{part.name} has shape {found}, config.json makes it {part.full_shape}",
                    where=str(folder),
                    mend="use the config.json that belongs to these weights",
                )

    def dtype(self, part: Part) -> torch.dtype:
        """As the part is stored."""
        stored = self._stored[part.name]
        if stored.dtype not in DTYPES:
            raise InputError(
                f"{part.name} is stored as {stored.dtype}, not as one of {', '.join(DTYPES)}", where=str(self.folder)
            )
        return DTYPES[stored.dtype]

    def read(self, part: Part) -> Tensor:
        """A part, contiguous; no byte beside it is read but where the file system reads ahead."""
        path = self.folder / self._stored[part.name].file
        try:
            with safe_open(path, framework="pt") as opened:
                whole = opened.get_slice(part.name)
                cut = slice(part.start, part.stop)
                piece: Tensor = whole[:] if part.axis is None else whole[cut] if part.axis == 0 else whole[:, cut]
                piece = piece.clone(memory_format=torch.contiguous_format)
        except OSError as error:
            raise EnvironmentFault(f"cannot be read: {error}", where=str(path), mend="check the volume") from error
        except SafetensorError as error:
            raise InputError(f"cannot be read: {error}", where=str(path), mend=AGAIN) from error
        self.read_bytes += piece.nbytes
        return piece
