"""The sizes of a decoder-only transformer, read from a Hugging Face `config.json`.

Pure: no torch, no Megatron. Everything else in this room asks `ModelShape`, never the raw dictionary,
so a field that we do not honour is refused here, once, by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from twinpod.errors import InputError


class Family(Enum):
    """Which architecture of `config.json` a model is; each has one file in `convert/`."""

    LLAMA = "LlamaForCausalLM"
    QWEN2 = "Qwen2ForCausalLM"
    QWEN3 = "Qwen3ForCausalLM"
    OPT = "OPTForCausalLM"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of one model. Lengths are in elements; `rope_theta` is the base of the rotary embedding, where it has one.

    What follows from the family alone is a property.
    """

    family: Family
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    max_positions: int
    norm_eps: float
    rope_theta: float
    rope_llama3_factor: float | None
    tied: bool
    init_std: float

    @property
    def qkv_bias(self) -> bool:
        """Qwen2 adds a bias to the query, key and value projections; the others do not."""
        return self.family is Family.QWEN2

    @property
    def qk_norm(self) -> bool:
        """Qwen3 normalises each head of queries and keys."""
        return self.family is Family.QWEN3

    @property
    def plain(self) -> bool:
        """OPT is the transformer of GPT-3: layer norms, biases everywhere, ReLU without a gate, learned positions.

        The others have RMS norms, no biases (but see `qkv_bias`), gated SiLU and rotary positions.
        """
        return self.family is Family.OPT

    @property
    def position_offset(self) -> int:
        """Row of the learned position embedding that position 0 has (transformers `OPTLearnedPositionalEmbedding`)."""
        return 2 if self.plain else 0

    def padded_vocab(self, tp: int) -> int:
        """Rows of Megatron's embedding: `vocab` rounded up so that `tp` ranks hold equal parts."""
        return -(-self.vocab // tp) * tp


def shape_from_huggingface(config: Mapping[str, Any]) -> ModelShape:
    """Read a `config.json` dictionary. Raises `InputError` for a missing or unsupported field."""
    family = _family(config)
    return _opt_shape(config) if family is Family.OPT else _rotary_shape(config, family)


def _rotary_shape(config: Mapping[str, Any], family: Family) -> ModelShape:
    heads = _whole(config, "num_attention_heads")
    hidden = _whole(config, "hidden_size")
    theta, llama3 = _rope(config)
    _refuse_unsupported(config)
    return ModelShape(
        family=family,
        hidden=hidden,
        layers=_whole(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        ffn=_whole(config, "intermediate_size"),
        vocab=_whole(config, "vocab_size"),
        max_positions=int(config.get("max_position_embeddings", 32768)),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_llama3_factor=llama3,
        tied=bool(config.get("tie_word_embeddings", False)),
        init_std=float(config.get("initializer_range", 0.02)),
    )


def _opt_shape(config: Mapping[str, Any]) -> ModelShape:
    """Fields and defaults of transformers' `OPTConfig`. Its dropouts are not read: the trainer has none anywhere."""
    heads, hidden = _whole(config, "num_attention_heads"), _whole(config, "hidden_size")
    if hidden % heads:
        raise InputError(f"{hidden} is not divisible by {heads} heads", where="config.json: hidden_size")
    demanded = {
        "word_embed_proj_dim": hidden,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "_remove_final_layer_norm": False,
    }
    for key, value in demanded.items():
        found = config.get(key)
        if found is not None and found != value:
            raise InputError(
                f"{found!r} is not supported by the trainer",
                where=f"config.json: {key}",
                mend=f"use {json.dumps(value)}, or a model that has it",
            )
    return ModelShape(
        family=Family.OPT,
        hidden=hidden,
        layers=_whole(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        ffn=_whole(config, "ffn_dim"),
        vocab=_whole(config, "vocab_size"),
        max_positions=_whole(config, "max_position_embeddings"),
        norm_eps=1e-5,  # torch's LayerNorm; OPT's configuration has no field for it
        rope_theta=10000.0,  # not used
        rope_llama3_factor=None,
        tied=bool(config.get("tie_word_embeddings", True)),
        init_std=float(config.get("init_std", 0.02)),
    )


def _family(config: Mapping[str, Any]) -> Family:
    names = list(config.get("architectures") or ())
    known = {family.value: family for family in Family}
    for name in names:
        if name in known:
            return known[name]
    raise InputError(
        f"the trainer knows {', '.join(known)}, not {names}",
        where="config.json: architectures",
        mend="use one of these models, or add a file to twinpod/trainer/convert/",
    )


def _whole(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"must be a whole number above 0, not {value!r}", where=f"config.json: {key}")
    return value


def _rope(config: Mapping[str, Any]) -> tuple[float, float | None]:
    """`(theta, factor of the llama3 scaling or None)`; transformers 5 nests both under `rope_parameters`."""
    nested = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(nested.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = nested.get("rope_type") or nested.get("type") or "default"
    if kind == "default":
        return theta, None
    fixed = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    if kind == "llama3" and all(nested.get(key) == value for key, value in fixed.items()):
        # Megatron's RotaryEmbedding._apply_scaling has these three numbers built in.
        return theta, float(nested["factor"])
    raise InputError(
        f"rope type {kind!r} with {dict(nested)} is not supported by the trainer",
        where="config.json: rope_parameters",
        mend=f"use 'default', or 'llama3' with {fixed}",
    )


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    """Fields that would change the mathematics and that the converter does not carry."""
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(
            f"{config['hidden_act']!r} is not supported", where="config.json: hidden_act", mend="use 'silu'"
        )
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if config.get(key):
            raise InputError(
                "is on, which the trainer does not support", where=f"config.json: {key}", mend="set it to false"
            )
