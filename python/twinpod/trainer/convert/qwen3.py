"""Qwen3: Llama with an RMS norm over each head of queries and keys (transformers `models/qwen3`)."""

from __future__ import annotations

from twinpod.trainer.convert.layout import Layer, Part, attention, gated_mlp, norms


def layer_parts(layer: Layer) -> tuple[Part, ...]:
    """All tensors of one layer. The head norms are the same for all heads, so tensor-parallel ranks replicate them."""
    return (
        *norms(layer),
        *attention(layer, bias=False),
        layer.replicated("self_attn.q_norm.weight", "self_attention.q_layernorm.weight", layer.shape.head_dim),
        layer.replicated("self_attn.k_norm.weight", "self_attention.k_layernorm.weight", layer.shape.head_dim),
        *gated_mlp(layer),
    )
