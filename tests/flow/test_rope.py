"""Rotary positions of trainer, engine and transformers are the same numbers, far beyond the original context, too.

The trainer's log-probs with them are compared in `test_trainer_layouts.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from twinpod.api.load import load_manifest
from twinpod.api.model_folder import write_model_folder
from twinpod.api.types import ModelSpec, RLJob
from twinpod.records.model_shape import ModelShape, shape_from_huggingface

SAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "reverse-letters.yaml"
pytestmark = pytest.mark.timeout(300)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
MODEL = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 64,
    "vocab_size": 13,
    "rope_theta": 1e6,
    "eos_token_id": 1,
}
CASES: dict[str, dict[str, Any]] = {
    "llama-3.1": {
        "max_position_embeddings": 131072,
        "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192},
    },
    "llama3, other numbers": {
        "max_position_embeddings": 65536,
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 3.0,
            "low_freq_factor": 2.0,
            "high_freq_factor": 7.0,
            "original_max_position_embeddings": 1000,
        },
    },
    "llama3, original context outside": {
        "max_position_embeddings": 65536,
        "original_max_position_embeddings": 4096,
        "rope_scaling": LLAMA3,
    },
    "qwen to 128k, the number of before": {"max_position_embeddings": 40960, "rope_scaling": YARN},
    "qwen to 128k": {"max_position_embeddings": 131072, "rope_parameters": {**YARN, "rope_theta": 1e6}},
    "yarn without the original context": {
        "max_position_embeddings": 4096,
        "rope_scaling": {"type": "yarn", "factor": 2.5},
    },
    "yarn, betas, not rounded": {
        "max_position_embeddings": 131072,
        "rope_scaling": {**YARN, "beta_fast": 20.0, "beta_slow": 2.0, "truncate": False},
    },
    "yarn, its attention factor": {
        "max_position_embeddings": 131072,
        "rope_scaling": {**YARN, "attention_factor": 0.7},
    },
    "yarn, mscale": {
        "max_position_embeddings": 131072,
        "rope_scaling": {**YARN, "mscale": 1.5, "mscale_all_dim": 0.5},
    },
    "yarn, no stretching": {"max_position_embeddings": 4096, "rope_scaling": {"type": "yarn", "factor": 1.0}},
}
cases = pytest.mark.parametrize("case", list(CASES))


def shape_of(case: str) -> ModelShape:
    return shape_from_huggingface({**MODEL, **CASES[case]})


def of_transformers(case: str) -> tuple[Any, float]:
    from transformers import Qwen3Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = Qwen3Config(**{**MODEL, **CASES[case]})
    frequencies, factor = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, "cpu")
    return frequencies, float(factor)


@cases
def test_the_trainer_rotates_by_the_frequencies_of_transformers(case: str) -> None:
    import torch
    from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import (
        _yarn_get_concentration_factor_from_config,
    )

    from twinpod.trainer.rope import config_of, inverse_frequencies

    shape = shape_of(case)
    assert shape.rope is not None
    frequencies, factor = of_transformers(case)
    assert torch.equal(inverse_frequencies(shape.rope, shape.head_dim), frequencies)
    kind, fields = config_of(shape.rope)
    config = kind(num_layers=1, hidden_size=64, num_attention_heads=2, **fields)
    assert _yarn_get_concentration_factor_from_config(config) == pytest.approx(factor, rel=1e-12)


@cases
def test_the_engine_rotates_by_the_frequencies_of_transformers(tmp_path: Path, case: str) -> None:
    import torch
    from sglang.srt.layers.rotary_embedding import get_rope
    from sglang.srt.utils.hf_transformers_utils import get_config, get_context_length, get_rope_config

    config = get_config(str(engine_folder(tmp_path, case)), trust_remote_code=False)
    shape = shape_of(case)
    assert get_context_length(config) == shape.max_positions
    theta, scaling = get_rope_config(config)
    rope = get_rope(
        shape.head_dim, shape.head_dim, shape.max_positions, theta, rope_scaling=scaling, dtype=torch.float32
    )
    frequencies, factor = of_transformers(case)
    assert rope.cos_sin_cache.shape[0] >= shape.max_positions
    for position in (1, 1000, shape.max_positions - 1):
        angles = torch.tensor(float(position)) * frequencies
        expected = torch.cat((angles.cos(), angles.sin())) * factor
        assert torch.allclose(rope.cos_sin_cache[position], expected, atol=1e-5), position


def engine_folder(base: Path, case: str) -> Path:
    """What the halves write for a job that begins with a folder of this configuration."""
    source, written = base / "source", base / "written"
    write_model_folder(load_manifest(SAMPLE), source)
    (source / "config.json").write_text(json.dumps({**MODEL, **CASES[case]}))
    write_model_folder(job_from(source), written)
    return written


def job_from(folder: Path) -> RLJob:
    job = load_manifest(SAMPLE)
    spec = job.spec.model_copy(update={"model": ModelSpec(from_=str(folder))})
    return job.model_copy(update={"spec": spec})
