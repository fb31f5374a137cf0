"""Llama: rotary attention without biases, gated MLP, RMS norms (transformers `models/llama`)."""

from __future__ import annotations

from twinpod.trainer.convert.layout import Layer, Part, attention, gated_mlp, norms


def layer_parts(layer: Layer) -> tuple[Part, ...]:
    """All tensors of one layer."""
    return (*norms(layer), *attention(layer, bias=False), *gated_mlp(layer))
