"""The sizes of a decoder-only transformer, read from a Hugging Face `config.json`.

Pure: no torch, no Megatron. The trainer and whoever checks a folder before a start ask `ModelShape`, never the raw
dictionary, so a field that we do not honour is refused here, once, by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from twinpod.errors import InputError
from twinpod.records.rope import Rope, rope_from_huggingface


class Family(Enum):
    """Which architecture of `config.json` a model is; each has one file in `twinpod/trainer/convert/`."""

    LLAMA = "LlamaForCausalLM"
    QWEN2 = "Qwen2ForCausalLM"
    QWEN3 = "Qwen3ForCausalLM"
    OPT = "OPTForCausalLM"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of one model. Lengths are in elements. What follows from the family alone is a property."""

    family: Family
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    max_positions: int  # of prompt and answer together, with the stretching of `rope`
    norm_eps: float
    rope: Rope | None  # None: learned positions
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

    @property
    def attention_tokens(self) -> int:
        """Length of a sequence at which attention costs as much as all matrix products together, output layer included.

        Multiplications a token: the weights' own, and on average half the length times twice the heads' width a layer.
        """
        width = self.heads * self.head_dim
        products = 2 * self.hidden * (width + self.kv_heads * self.head_dim) + (2 if self.plain else 3) * (
            self.hidden * self.ffn
        )
        return max(1, (self.layers * products + self.vocab * self.hidden) // (self.layers * width))

    def padded_vocab(self, tp: int) -> int:
        """Rows of Megatron's embedding: `vocab` rounded up so that `tp` ranks hold equal parts."""
        return -(-self.vocab // tp) * tp


def shape_from_huggingface(config: Mapping[str, Any]) -> ModelShape:
    """Read a `config.json` dictionary. Raises `InputError` for a missing or unsupported field."""
    family = _family(config)
    if config.get("quantization_config"):
        method = dict(config["quantization_config"]).get("quant_method", "unnamed")
        raise InputError(
            f"the weights are quantised ({method}), which cannot be trained",
            where="config.json: quantization_config",
            mend="give the folder of the model in bfloat16 or float32",
        )
    return _opt_shape(config) if family is Family.OPT else _rotary_shape(config, family)


def _rotary_shape(config: Mapping[str, Any], family: Family) -> ModelShape:
    heads = _whole(config, "num_attention_heads")
    hidden = _whole(config, "hidden_size")
    head_dim = _whole({"head_dim": hidden // heads, **_given(config)}, "head_dim")
    if head_dim % 2:
        raise InputError(f"is {head_dim}; rotary positions need an even size", where="config.json: head_dim")
    positions = {"max_position_embeddings": 2048 if family is Family.LLAMA else 32768, **_given(config)}
    rope = rope_from_huggingface(positions)
    _refuse_unsupported(config)
    return ModelShape(
        family=family,
        hidden=hidden,
        layers=_whole(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=_whole({"num_key_value_heads": heads, **_given(config)}, "num_key_value_heads"),
        head_dim=head_dim,
        ffn=_whole(config, "intermediate_size"),
        vocab=_whole(config, "vocab_size"),
        max_positions=rope.context(_whole(positions, "max_position_embeddings")),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope=rope,
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
        rope=None,
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


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that are null, which transformers takes as left out."""
    return {key: value for key, value in config.items() if value is not None}


def _whole(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"must be a whole number above 0, not {value!r}", where=f"config.json: {key}")
    return value


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    """Fields that would change the mathematics and that the converter does not carry."""
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(
            f"{config['hidden_act']!r} is not supported", where="config.json: hidden_act", mend="use 'silu'"
        )
    if other := {str(kind) for kind in config.get("layer_types") or ()} - {"full_attention"}:
        raise InputError(
            f"holds {', '.join(sorted(other))}; the trainer knows full_attention", where="config.json: layer_types"
        )
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if config.get(key):
            raise InputError(
                "is on, which the trainer does not support", where=f"config.json: {key}", mend="set it to false"
            )
