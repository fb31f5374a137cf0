"""The size of a pod's /dev/shm when a job leaves it out. Pure; below the resource models, which use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinpod.api import quantity
from twinpod.api.sizing.parameters import total
from twinpod.records.model_shape import Family, ModelShape

if TYPE_CHECKING:
    from twinpod.api.job import ModelSpec
    from twinpod.api.pods import HybridSpec

MIB = 2**20
SLOTS = 2  # of the arena (`twinpod.trainer.publish`)
SPECIAL_TOKENS = 2  # of a tokenizer of characters: padding and the end of a text
SEGMENTS_BYTES = 64 * MIB  # a rank: segments of NCCL or gloo, the manifest of the weights


def shared_bytes(shape: ModelShape, *, item: int, ranks: int) -> int:
    """Two slots of the weights, `item` bytes each, and what `ranks` processes put beside them."""
    return SLOTS * total(shape) * item + ranks * SEGMENTS_BYTES


def as_quantity(nbytes: int) -> str:
    """Rounded up to a whole number of 16 MiB."""
    return quantity.from_bytes(-(-nbytes // (16 * MIB)) * 16 * MIB)


def derived_size(model: ModelSpec, hybrid: HybridSpec) -> str | None:
    """What `hybrid.sharedMemory` is when it is left out; None where the model's sizes stand in files."""
    shape = _shape(model)
    if shape is None:
        return None
    ranks = max(hybrid.trainer.ranks, hybrid.inference.tensor_parallel * hybrid.inference.data_parallel)
    return as_quantity(shared_bytes(shape, item=4 if model.dtype == "float32" else 2, ranks=ranks))


def _shape(model: ModelSpec) -> ModelShape | None:
    config, tokenizer = model.config, model.tokenizer
    if config is None or tokenizer is None or tokenizer.characters is None:
        return None
    return ModelShape(
        family=Family[config.architecture.upper()],
        hidden=config.hidden_size,
        layers=config.layers,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        ffn=config.ffn_size,
        vocab=len(tokenizer.characters) + SPECIAL_TOKENS,
        max_positions=config.max_positions,
        norm_eps=0.0,
        rope=None,
        tied=config.tie_embeddings,
        init_std=0.0,
    )
