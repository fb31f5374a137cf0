"""Qwen2: Llama with biases on the query, key and value projections (transformers `models/qwen2`)."""

from __future__ import annotations

from twinpod.trainer.convert.layout import Layer, Part, attention, gated_mlp, norms


def layer_parts(layer: Layer) -> tuple[Part, ...]:
    """All tensors of one layer."""
    return (*norms(layer), *attention(layer, bias=True), *gated_mlp(layer))
