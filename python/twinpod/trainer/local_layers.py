"""Megatron's own layers in plain torch, for CPUs and for `layerSpec: Local`, with norms that know of divided sequences.

Megatron's local spec takes torch's norms where Apex is not, and those refuse sequence parallelism: a parameter that
has seen a part of the positions must be marked, so that its gradient is summed over tensor-parallel ranks.
"""

from __future__ import annotations

import copy

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig


class Norm:
    """Makes torch's norm, as Megatron's `WrappedTorchNorm` does, and marks it as Megatron's fused norms are marked."""

    def __new__(
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_unused: object
    ) -> torch.nn.Module:
        """A norm over the last axis; which one, the configuration says."""
        whole = copy.copy(config)
        whole.sequence_parallel = False
        norm: torch.nn.Module = WrappedTorchNorm(whole, hidden_size, eps)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return norm


def local_block(layers: int, *, qk_norm: bool, normalization: str) -> TransformerBlockSubmodules:
    """The spec of `layers` layers and of the norm behind the last."""
    layer = get_gpt_layer_local_spec(qk_layernorm=qk_norm, normalization=normalization)
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = Norm
    if qk_norm:
        attention = parts.self_attention.submodules
        attention.q_layernorm = attention.k_layernorm = Norm
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=Norm)
