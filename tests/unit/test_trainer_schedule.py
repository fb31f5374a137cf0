"""The learning rate over a run."""

from __future__ import annotations

import pytest

from twinpod.records.training import TrainSettings
from twinpod.trainer.schedule import learning_rate

WHOLE = TrainSettings(
    learning_rate=1.0,
    betas=(0.9, 0.95),
    weight_decay=0.0,
    eps=1e-8,
    tau=0.1,
    temperature=1.0,
    mask="all",
    steps=1,
    clip_grad=1.0,
    micro_batch_tokens=64,
    iterations=10,
)


def rates(**changes: object) -> list[float]:
    values = {name: getattr(WHOLE, name) for name in WHOLE.__slots__} | changes
    settings = TrainSettings(**values)  # type: ignore[arg-type]  # the names are the record's own
    return [learning_rate(settings, iteration) for iteration in range(1, 11)]


def test_without_a_schedule_it_stays() -> None:
    assert rates() == [1.0] * 10


def test_warm_up_grows_in_equal_steps_and_never_trains_with_nothing() -> None:
    assert rates(warmup_iterations=3) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 7)


def test_linear_falls_in_equal_steps_to_one_above_the_minimum() -> None:
    assert rates(decay="linear", minimum_rate=0.5) == pytest.approx([1 - 0.05 * n for n in range(10)])


def test_cosine_is_half_way_in_the_middle_and_flat_at_both_ends() -> None:
    found = rates(decay="cosine", minimum_rate=0.1, warmup_iterations=2)
    assert found[2] == 1.0
    assert found[6] == pytest.approx(0.55)
    assert found[2] - found[3] < found[5] - found[6] > found[8] - found[9]
    assert found[9] > 0.1


def test_a_run_that_was_made_shorter_ends_at_the_minimum() -> None:
    assert rates(decay="linear", minimum_rate=0.25, iterations=5)[5:] == [0.25] * 5
