"""The first weights of a run: from a Hugging Face folder, or random and the same in every layout.

Random weights are drawn a tensor at a time, each from a generator seeded by the seed and the tensor's Hugging Face
name. So they do not depend on the order of drawing nor on which rank draws, and a rank draws only the tensors of its
own stage.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import xxhash
from safetensors import safe_open
from torch import Tensor

from twinpod.errors import InputError
from twinpod.records.model_shape import ModelShape
from twinpod.trainer.convert.copy import import_all
from twinpod.trainer.convert.layout import Part
from twinpod.trainer.convert.plan import naming_of, plan_parts
from twinpod.trainer.place import Place


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


def load_folder(parameters: Mapping[str, Tensor], shape: ModelShape, place: Place, folder: Path) -> None:
    """Fill a rank's parameters from the safetensors files of a Hugging Face folder."""
    parts = plan_parts(shape, place, naming_of(parameters))
    import_all(parameters, parts, folder_reader(folder, parts))


def folder_reader(folder: Path, parts: tuple[Part, ...]) -> Callable[[str], Tensor]:
    """A function that reads a full tensor by name; InputError for a folder without the tensors that `parts` name."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files: dict[str, str] = json.loads(index.read_text())["weight_map"]
    elif (folder / "model.safetensors").exists():
        with safe_open(folder / "model.safetensors", framework="pt") as opened:
            files = dict.fromkeys(opened.keys(), "model.safetensors")
    else:
        raise InputError(
            "has no model.safetensors", where=str(folder), mend="give a Hugging Face folder with safetensors weights"
        )
    missing = sorted({part.name for part in parts} - files.keys())
    if missing:
        raise InputError(f"lacks {len(missing)} tensors, {missing[0]} among them", where=str(folder))

    def read(name: str) -> Tensor:
        with safe_open(folder / files[name], framework="pt") as opened:
            return opened.get_tensor(name)

    return read
