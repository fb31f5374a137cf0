"""The final product: a Hugging Face folder that `transformers` opens with `from_pretrained`.

Nothing is gathered. The plan knows every tensor's full shape, so each rank computes the same safetensors header; rank
0 makes the file at its full size, then every rank maps it and writes its own parts where they belong (format: an
8-byte little-endian length, a JSON header, the data; https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinpod.trainer.convert.copy import megatron_view
from twinpod.trainer.convert.plan import full_tensors, naming_of, plan_parts
from twinpod.trainer.folders import begin_folder, finish_folder, partial_name
from twinpod.trainer.megatron import RankModel
from twinpod.trainer.publish import DTYPE_NAMES
from twinpod.trainer.wire import Control

WEIGHTS = "model.safetensors"
GENERATION = "generation_config.json"
WRITTEN = ("config.json",)  # by the export itself
LEFT_OUT = (".safetensors", ".safetensors.index.json", ".bin", ".partial")


def export_folder(
    rank: RankModel, control: Control, folder: Path, *, config: Mapping[str, Any], tokenizer: Path | None
) -> None:
    """Write the folder and rename it into place. Collective; needs a file system that all ranks see.

    `config` is the model's config.json; the files beside one in `tokenizer` are copied.
    """
    tensors = full_tensors(rank.shape)
    header, starts = safetensors_header(tensors, DTYPE_NAMES[rank.machine.dtype], rank.machine.dtype.itemsize)
    size = len(header) + sum(math.prod(shape) for shape in tensors.values()) * rank.machine.dtype.itemsize

    def begin() -> None:
        partial = begin_folder(folder)
        _write_texts(partial, config, str(rank.machine.dtype).removeprefix("torch."), tokenizer)
        with (partial / WEIGHTS).open("wb") as file:
            file.write(header)
            file.truncate(size)

    leader, writes = control.rank == 0, rank.place.dp_rank == 0
    control.together(str(folder), begin if leader else None)
    control.together(
        str(folder),
        (lambda: _write_parts(rank, partial_name(folder) / WEIGHTS, len(header), starts)) if writes else None,
    )
    control.together(str(folder), (lambda: finish_folder(folder)) if leader else None)


def safetensors_header(tensors: Mapping[str, tuple[int, ...]], dtype: str, item: int) -> tuple[bytes, dict[str, int]]:
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


def _write_parts(rank: RankModel, path: Path, base: int, starts: Mapping[str, int]) -> None:
    """This rank's owned parts, through a shared mapping of the file."""
    mapped = np.memmap(path, dtype=np.uint8, mode="r+")
    data = torch.from_numpy(mapped)
    parameters = rank.parameters
    for part in plan_parts(rank.shape, rank.place, naming_of(parameters)):
        if part.owned:
            begin = base + starts[part.name]
            raw = data[begin : begin + math.prod(part.full_shape) * rank.machine.dtype.itemsize]
            full = raw.view(rank.machine.dtype).view(part.full_shape)
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
