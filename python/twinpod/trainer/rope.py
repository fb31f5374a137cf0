"""Rotary positions with llama3 or YaRN scaling in Megatron-core.

Megatron 0.16's GPTModel takes one of llama3's four numbers, and its YarnRotaryEmbedding neither all of YaRN's nor a
given attention factor. Its plain RotaryEmbedding rotates by whatever frequencies it holds, so they are computed here,
in the order of operations of transformers 5 (`modeling_rope_utils.py`): equal to the bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from twinpod.records.rope import Llama3Scaling, Rope, YarnScaling


@dataclass
class ScaledAttentionConfig(TransformerConfig):  # type: ignore[misc]  # Megatron has no types
    """The fields that `transformer/attention.py` looks for (`_yarn_get_concentration_factor_from_config`): cosine and
    sine are multiplied by (0.1 * yarn_mscale * ln(yarn_rotary_scaling_factor) + 1) / (the same of yarn_mscale_all_dim).
    """

    yarn_rotary_scaling_factor: float = math.e  # its logarithm is 1
    yarn_mscale: float = 0.0
    yarn_mscale_all_dim: float = 0.0


def config_of(rope: Rope | None) -> tuple[type[TransformerConfig], dict[str, float]]:
    """Megatron's configuration class for these positions, and what it needs beside the fields of all."""
    if rope is None or not isinstance(rope.scaling, YarnScaling) or rope.scaling.attention_factor == 1.0:
        return TransformerConfig, {}
    return ScaledAttentionConfig, {"yarn_mscale": 10.0 * (rope.scaling.attention_factor - 1.0)}


def inverse_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """float32[head_dim / 2] on the CPU: radians a position."""
    plain = 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim))
    match rope.scaling:
        case None:
            return plain
        case Llama3Scaling():
            return _llama3(plain, rope.scaling)
        case YarnScaling():
            return _yarn(rope.theta, head_dim, rope.scaling)


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    low_wavelength = scaling.original_positions / scaling.low_freq_factor
    high_wavelength = scaling.original_positions / scaling.high_freq_factor
    wavelength = 2 * math.pi / plain
    stretched = torch.where(wavelength > low_wavelength, plain / scaling.factor, plain)
    share = (scaling.original_positions / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - share) * stretched / scaling.factor + share * stretched
    between = ~(wavelength < high_wavelength) * ~(wavelength > low_wavelength)
    return torch.where(between, blended, stretched)


def _yarn(theta: float, head_dim: int, scaling: YarnScaling) -> Tensor:
    def dimension(rotations: float) -> float:
        """Which dimension turns so often over the original context."""
        turns = scaling.original_positions / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = torch.clamp((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    powers = theta ** (torch.arange(0, head_dim, 2).to(torch.float32) / head_dim)
    kept, stretched = 1.0 / powers, 1.0 / (scaling.factor * powers)
    share = 1 - ramp
    return stretched * (1 - share) + kept * share
