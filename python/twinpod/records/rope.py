"""Rotary positions of a model, read from a Hugging Face `config.json`. Pure: no torch.

What transformers 5 reads (`modeling_rope_utils.py`) is read here; what the trainer does not have is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twinpod.errors import InputError

WHERE = "config.json: rope_parameters"
KNOWN = ("default", "llama3", "yarn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1: long wavelengths are divided by `factor`, short ones kept, those between the two limits blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """YaRN (https://arxiv.org/abs/2309.00071). `attention_factor` multiplies cosine and sine; `truncate` rounds the
    limits of the blend to whole dimensions.
    """

    factor: float
    original_positions: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Base of the rotary embedding and how it is stretched to longer contexts."""

    theta: float
    scaling: Llama3Scaling | YarnScaling | None = None

    def context(self, max_positions: int) -> int:
        """Positions of the stretched model. Some folders (Qwen's) keep the number of before YaRN in
        max_position_embeddings.
        """
        if isinstance(self.scaling, YarnScaling):
            return max(max_positions, round(self.scaling.factor * self.scaling.original_positions))
        return max_positions

    def parameters(self) -> dict[str, Any]:
        """`rope_parameters` for SGLang, complete. It takes no `attention_factor`, but multiplies its own by
        `attn_factor` (srt/layers/rotary_embedding/yarn.py).
        """
        scaling, found = self.scaling, {"rope_theta": self.theta}
        match scaling:
            case None:
                return {"rope_type": "default", **found}
            case Llama3Scaling():
                return {
                    "rope_type": "llama3",
                    **found,
                    "factor": scaling.factor,
                    "low_freq_factor": scaling.low_freq_factor,
                    "high_freq_factor": scaling.high_freq_factor,
                    "original_max_position_embeddings": scaling.original_positions,
                }
            case YarnScaling():
                extra = scaling.attention_factor / _magnitude(scaling.factor, 1.0)
                return {
                    "rope_type": "yarn",
                    **found,
                    "factor": scaling.factor,
                    "original_max_position_embeddings": scaling.original_positions,
                    "beta_fast": scaling.beta_fast,
                    "beta_slow": scaling.beta_slow,
                    "truncate": scaling.truncate,
                    **({} if extra == 1.0 else {"attn_factor": extra}),
                }


def rope_from_huggingface(config: Mapping[str, Any]) -> Rope:
    """Read a `config.json` dictionary; transformers 5 nests base and scaling under `rope_parameters`."""
    nested = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(nested, Mapping):
        raise InputError(f"must be an object, not {nested!r}", where=WHERE)
    theta = _number({**config, **nested}, "rope_theta", 10000.0)
    kind = nested.get("rope_type") or nested.get("type") or "default"
    partial = nested.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise InputError(f"is {partial!r}; the trainer rotates whole heads", where=f"{WHERE}.partial_rotary_factor")
    original = config.get("original_max_position_embeddings")  # it comes first, as in transformers
    nested = {"original_max_position_embeddings": config.get("max_position_embeddings"), **nested}
    if original is not None:
        nested["original_max_position_embeddings"] = original
    match kind:
        case "default":
            return Rope(theta=theta)
        case "llama3":
            return Rope(theta=theta, scaling=_llama3(nested))
        case "yarn":
            return Rope(theta=theta, scaling=_yarn(nested, config))
    raise InputError(
        f"is {kind!r}, which the trainer does not know",
        where=f"{WHERE}.rope_type",
        mend=f"use a model with one of {', '.join(KNOWN)}",
    )


def _llama3(nested: Mapping[str, Any]) -> Llama3Scaling:
    scaling = Llama3Scaling(
        factor=_number(nested, "factor"),
        low_freq_factor=_number(nested, "low_freq_factor"),
        high_freq_factor=_number(nested, "high_freq_factor"),
        original_positions=round(_number(nested, "original_max_position_embeddings")),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise InputError(
            f"is {scaling.high_freq_factor:g}; must be above low_freq_factor ({scaling.low_freq_factor:g})",
            where=f"{WHERE}.high_freq_factor",
        )
    return scaling


def _yarn(nested: Mapping[str, Any], config: Mapping[str, Any]) -> YarnScaling:
    original = round(_number(nested, "original_max_position_embeddings"))
    implied = None if nested.get("factor") is not None else _number(config, "max_position_embeddings") / original
    factor = _number(nested, "factor", implied)
    mscale, all_dim = nested.get("mscale"), nested.get("mscale_all_dim")
    derived = _magnitude(factor, 1.0)
    if mscale and all_dim:
        derived = _magnitude(factor, _number(nested, "mscale")) / _magnitude(factor, _number(nested, "mscale_all_dim"))
    return YarnScaling(
        factor=factor,
        original_positions=original,
        beta_fast=_number(nested, "beta_fast", 32.0),
        beta_slow=_number(nested, "beta_slow", 1.0),
        attention_factor=_number(nested, "attention_factor", derived),
        truncate=bool(nested.get("truncate", True)),
    )


def _magnitude(scale: float, mscale: float) -> float:
    """YaRN's correction of the length of queries and keys."""
    return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0


def _number(nested: Mapping[str, Any], key: str, otherwise: float | None = None) -> float:
    value = nested.get(key)
    value = otherwise if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not (0 < value < math.inf):
        said = "is missing" if value is None else f"is {value!r}"
        raise InputError(f"{said}; must be a number above 0", where=f"{WHERE}.{key}")
    return float(value)
