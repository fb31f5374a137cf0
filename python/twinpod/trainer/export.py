"""The final product: a Hugging Face folder that `transformers` opens with `from_pretrained`.

Nothing is gathered. The plan knows every tensor's full shape, so each rank computes the same files and headers; rank
0 makes the files at their full size, then every rank maps them and writes its own parts where they belong (format: an
8-byte little-endian length, a JSON header, the data; https://github.com/huggingface/safetensors#format).

As Hugging Face does, a model of more than 5 GB becomes several files and an index.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinpod.api.safetensors_header import INDEX, WEIGHTS
from twinpod.trainer.convert.copy import megatron_view
from twinpod.trainer.convert.plan import full_tensors, naming_of, plan_parts
from twinpod.trainer.folders import begin_folder, finish_folder, partial_name
from twinpod.trainer.megatron import RankModel
from twinpod.trainer.publish import DTYPE_NAMES
from twinpod.trainer.wire import Control

FILE_BYTES = 5_000_000_000  # Hugging Face's `max_shard_size`
GENERATION = "generation_config.json"
WRITTEN = ("config.json",)  # by the export itself
LEFT_OUT = (".safetensors", ".safetensors.index.json", ".bin", ".partial")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFile:
    """One safetensors file of the folder."""

    name: str
    header: bytes
    starts: dict[str, int]  # of each tensor, in bytes from the file's beginning
    size: int  # of the whole file


def export_folder(
    rank: RankModel,
    control: Control,
    folder: Path,
    *,
    config: Mapping[str, Any],
    tokenizer: Path | None,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write the folder and rename it into place. Collective; needs a file system that all ranks see.

    `config` is the model's config.json; the files beside one in `tokenizer` are copied. No file of weights has more
    than `file_bytes`, unless a single tensor does.
    """
    dtype = rank.machine.dtype
    files = plan_files(full_tensors(rank.shape), DTYPE_NAMES[dtype], dtype.itemsize, file_bytes)

    def begin() -> None:
        partial = begin_folder(folder)
        _write_texts(partial, config, str(dtype).removeprefix("torch."), tokenizer)
        for one in files:
            with (partial / one.name).open("wb") as file:
                file.write(one.header)
                file.truncate(one.size)
        if len(files) > 1:
            (partial / INDEX).write_text(json.dumps(index_of(files), indent=2) + "\n")

    leader, writes = control.rank == 0, rank.place.dp_rank == 0
    control.together(str(folder), begin if leader else None)
    control.together(str(folder), (lambda: _write_parts(rank, partial_name(folder), files)) if writes else None)
    control.together(str(folder), (lambda: finish_folder(folder)) if leader else None)


def plan_files(tensors: Shapes, dtype: str, item: int, file_bytes: int) -> tuple[WeightsFile, ...]:
    """Tensors in their order, cut where a file would exceed `file_bytes` of data, with Hugging Face's names. Pure."""
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    held = 0
    for name, shape in tensors.items():
        nbytes = math.prod(shape) * item
        if groups[-1] and held + nbytes > file_bytes:
            groups.append({})
            held = 0
        groups[-1][name] = shape
        held += nbytes
    files = []
    for number, group in enumerate(groups, start=1):
        header, starts = safetensors_header(group, dtype, item)
        files.append(
            WeightsFile(
                name=WEIGHTS if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors",
                header=header,
                starts={name: len(header) + start for name, start in starts.items()},
                size=len(header) + sum(math.prod(shape) for shape in group.values()) * item,
            )
        )
    return tuple(files)


def index_of(files: Sequence[WeightsFile]) -> dict[str, Any]:
    """The index beside several files: which of them holds a tensor. Pure."""
    total = sum(file.size - len(file.header) for file in files)
    weight_map = {name: file.name for file in files for name in file.starts}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def safetensors_header(tensors: Shapes, dtype: str, item: int) -> tuple[bytes, dict[str, int]]:
    """The file's first bytes, and where each tensor begins behind them. Pure."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    offset = 0
    for name, shape in tensors.items():
        starts[name] = offset
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + math.prod(shape) * item]}
        offset += math.prod(shape) * item
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, starts


def _write_parts(rank: RankModel, folder: Path, files: Sequence[WeightsFile]) -> None:
    """This rank's owned parts, through a shared mapping of each file that has some."""
    parameters, dtype = rank.parameters, rank.machine.dtype
    owned = [part for part in plan_parts(rank.shape, rank.place, naming_of(parameters)) if part.owned]
    for file in files:
        parts = [part for part in owned if part.name in file.starts]
        if not parts:
            continue
        mapped = np.memmap(folder / file.name, dtype=np.uint8, mode="r+")
        data = torch.from_numpy(mapped)
        for part in parts:
            begin = file.starts[part.name]
            raw = data[begin : begin + math.prod(part.full_shape) * dtype.itemsize]
            full = raw.view(dtype).view(part.full_shape)
            piece = full if part.axis is None else full.narrow(part.axis, part.start, part.stop - part.start)
            piece.copy_(megatron_view(parameters, part).reshape(part.shape))
        mapped.flush()


def _write_texts(folder: Path, config: Mapping[str, Any], dtype: str, beside: Path | None) -> None:
    (folder / "config.json").write_text(json.dumps({**config, "dtype": dtype}, indent=2) + "\n")
    for path in sorted(beside.iterdir()) if beside else ():
        if path.is_file() and path.name not in WRITTEN and not path.name.endswith(LEFT_OUT):
            shutil.copyfile(path, folder / path.name)
    if not (folder / GENERATION).exists():
        special = {
            key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None
        }
        (folder / GENERATION).write_text(json.dumps({"_from_model_config": True, **special}, indent=2) + "\n")
