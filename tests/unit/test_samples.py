"""Every sample is a valid manifest, short, and what the documentation says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinpod.api.load import load_manifest
from twinpod.local.inputs import load_run

FOLDER = Path(__file__).resolve().parents[2] / "manifests" / "samples"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_sample_is_valid_and_has_at_most_30_lines(path: Path) -> None:
    job, pools = load_run(path)
    assert job.metadata.name == path.stem
    assert len(pools) == (path.stem == "pool")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 30


@pytest.mark.parametrize(
    ("name", "cycle", "segment", "mask"),
    [
        ("reverse-letters", "Restart", 6, "all"),
        ("reverse-segments", "Restart", 2, "all"),
        ("reverse-keep", "Keep", 6, "all"),
        ("reverse-bf16", "Restart", 6, "all"),
        ("spell-backward", "Restart", 5, "all"),
        ("smoke", "Restart", 4, "all"),
        ("two-pods", "Restart", 6, "all"),
        ("pool", "Keep", 6, "all"),
    ],
)
def test_a_sample_is_what_it_says(name: str, cycle: str, segment: int, mask: str) -> None:
    spec = load_run(FOLDER / f"{name}.yaml")[0].spec
    assert (spec.hybrid.life_cycle, spec.rollout.segment_tokens, spec.algorithm.mask) == (cycle, segment, mask)


def test_the_sample_in_bfloat16_differs_in_nothing_else_and_has_a_wider_gap() -> None:
    full, half = (load_manifest(FOLDER / f"{name}.yaml").spec for name in ("reverse-letters", "reverse-bf16"))
    assert (half.model.dtype, half.algorithm.weights_gap_limit) == ("bfloat16", "1e-1")
    same = ("iterations", "seed", "dataset", "rollout", "reward", "storage", "hybrid")
    assert [getattr(full, name) for name in same] == [getattr(half, name) for name in same]


def test_two_pods_have_the_task_of_the_first_sample() -> None:
    first, two = (load_manifest(FOLDER / f"{name}.yaml").spec for name in ("reverse-letters", "two-pods"))
    assert two.hybrid.replicas == 2
    same = ("iterations", "seed", "model", "dataset", "algorithm", "rollout", "reward", "storage")
    assert [getattr(first, name) for name in same] == [getattr(two, name) for name in same]


def test_the_first_sample_is_the_issue_s_task() -> None:
    spec = load_manifest(FOLDER / "reverse-letters.yaml").spec
    algorithm = spec.algorithm
    assert (spec.iterations, algorithm.group_size, algorithm.groups_per_iteration, spec.dataset.held_out) == (
        100,
        16,
        32,
        200,
    )
    assert (algorithm.learning_rate, algorithm.tau, algorithm.betas, algorithm.clip_grad) == (
        "5e-4",
        "0.1",
        ("0.9", "0.95"),
        "1.0",
    )
    assert (algorithm.steps_per_iteration, algorithm.baseline, spec.rollout.temperature) == (2, "mean", "1")
