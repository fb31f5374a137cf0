"""How long a job may wait: what it says, and what follows from its model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.cluster.bad_manifests import JOB

from twinpod.api.load import load_resource
from twinpod.api.timeouts import seconds, timeouts_of
from twinpod.api.types import RLJob
from twinpod.records.model_shape import ModelShape, shape_from_huggingface
from twinpod.records.timeouts import Timeouts

LLAMA_70B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def job(dtype: str = "float32", **timeouts: str) -> RLJob:
    spec = {**JOB["spec"], "timeouts": timeouts}
    spec["model"] = {**spec["model"], "dtype": dtype}
    found = load_resource(json.dumps({**JOB, "spec": spec}))
    assert isinstance(found, RLJob)
    return found


def shape(**changes: object) -> ModelShape:
    return shape_from_huggingface({**LLAMA_70B, **changes})


@pytest.mark.parametrize(
    ("text", "found"), [("90s", 90), ("15m", 900), ("1h30m", 5400), ("1h1m1s", 3661), ("24h", 86_400)]
)
def test_a_duration_is_hours_minutes_and_seconds(text: str, found: float) -> None:
    assert seconds(text) == found


def test_a_small_model_has_the_usual_times() -> None:
    small = timeouts_of(job(), shape(num_hidden_layers=1, hidden_size=128, intermediate_size=64, vocab_size=64))
    usual = Timeouts()
    assert (small.stall_s, small.pods_s, small.train_s) == (usual.stall_s, usual.pods_s, usual.train_s)
    assert small.engine_s == pytest.approx(usual.engine_s, abs=1)
    assert small.snapshot_s == pytest.approx(usual.snapshot_s, abs=1)


def test_a_large_model_has_longer_ones_where_its_weights_move() -> None:
    large = timeouts_of(job("bfloat16"), shape())
    assert large.engine_s == large.weights_s == pytest.approx(600 + 141e9 / 100e6, rel=0.01)
    assert large.snapshot_s == pytest.approx(3600 + 70.6e9 * 16 / 50e6, rel=0.01)


def test_what_the_job_says_counts() -> None:
    found = timeouts_of(job(stall="20m", engine="90s", collective="30m"), shape())
    assert (found.stall_s, found.engine_s, found.engine_start_s) == (1200, 90, 45)
    assert (found.collective_s, found.fetch_s) == (1800, 1620)


def test_every_field_of_the_job_is_one_of_the_record() -> None:
    assert {f"{name}_s" for name, _ in job().spec.timeouts} <= set(Timeouts.__dataclass_fields__)
