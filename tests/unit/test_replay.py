"""Replay's policies: hold, age, choice, baselines, batches."""

from __future__ import annotations

import numpy as np
import pytest

from twinpod.errors import InputError
from twinpod.replay.baseline import Baseline, advantages
from twinpod.replay.policy import Held, Scored, choose, complete, plan_batch, too_old, usable


def held(number: int, *, born: int = 1, scored: int = 4, masked: int = 0) -> Held:
    return Held(group_id=number, born=born, oldest=born, scored=scored, masked=masked, size=4)


@pytest.mark.parametrize(
    ("scored", "masked", "is_complete", "is_usable"),
    [
        (4, 0, True, True),
        (3, 0, False, True),
        (2, 2, True, True),
        (1, 3, True, False),
        (0, 4, True, False),
        (0, 0, False, False),
    ],
)
def test_a_group_waits_for_every_verdict_and_needs_two_rewards(
    scored: int, masked: int, is_complete: bool, is_usable: bool
) -> None:
    one = held(1, scored=scored, masked=masked)
    assert (complete(one), usable(one)) == (is_complete, is_usable)


def test_the_oldest_complete_groups_make_the_batch() -> None:
    groups = [held(5, born=3), held(4, born=2), held(3, born=2, scored=3), held(2, born=2), held(9, born=1)]
    assert choose(groups, 3) == (9, 2, 4)


@pytest.mark.parametrize(("oldest", "now", "old"), [(1, 1, False), (1, 9, False), (1, 10, True), (5, 3, False)])
def test_age_counts_the_iterations_between(oldest: int, now: int, old: bool) -> None:
    assert too_old(oldest, now, 8) is old


@pytest.mark.parametrize(
    ("rewards", "kind", "tau", "expected"),
    [
        ([0.0, 1.0], Baseline.MEAN, 0.1, [-0.5, 0.5]),
        ([0.3, 0.3, 0.3], Baseline.LOG_MEAN_EXP, 0.1, [0.0, 0.0, 0.0]),
        ([0.0, 1.0], Baseline.LOG_MEAN_EXP, 1e6, [-0.5, 0.5]),  # large tau: the mean
        ([0.0, 1.0], Baseline.LOG_MEAN_EXP, 1e-3, [-1.0, 0.0]),  # small tau: the best, without overflow
    ],
)
def test_advantages(rewards: list[float], kind: Baseline, tau: float, expected: list[float]) -> None:
    np.testing.assert_allclose(advantages(rewards, kind, tau), expected, atol=2e-3)


def test_a_baseline_without_rewards_or_with_tau_zero_is_refused() -> None:
    with pytest.raises(InputError):
        advantages([], Baseline.MEAN, 0.1)
    with pytest.raises(InputError, match="tau"):
        advantages([1.0], Baseline.LOG_MEAN_EXP, 0.0)


def scored(one: int, group: int, reward: float, tokens: int = 9) -> Scored:
    return Scored(trajectory_id=one, group_id=group, tokens=tokens, generated=tokens - 2, reward=reward)


def test_a_plan_has_advantages_within_groups_and_weights_a_mean_over_groups_of_a_mean_over_samples() -> None:
    rows = [scored(3, 40, 1.0), scored(5, 40, 0.0), scored(6, 40, 0.5), scored(8, 50, 1.0)]
    plan = plan_batch(rows, iteration=6, version=5, baseline=Baseline.MEAN, tau=0.1, size=3)
    assert [one.trajectory_id for one in plan.samples] == [3, 5, 6, 8]
    assert [one.group for one in plan.samples] == [0, 0, 0, 1]
    assert [one.advantage for one in plan.samples] == [0.5, -0.5, 0.0, 0.0]
    assert [one.weight for one in plan.samples] == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
    assert (plan.mini_batches, plan.samples[0].tokens, plan.samples[0].generated) == (1, 9, 7)


@pytest.mark.parametrize(("groups", "wanted", "parts"), [(5, 2, 2), (2, 4, 2), (3, 1, 1), (0, 2, 0)])
def test_mini_batches_are_whole_groups_dealt_in_turn_and_each_weighs_one(groups: int, wanted: int, parts: int) -> None:
    rows = [scored(10 * group + one, group, float(one)) for group in range(groups) for one in range(2)]
    plan = plan_batch(rows, iteration=1, version=1, baseline=Baseline.MEAN, tau=0.1, size=2, mini_batches=wanted)
    assert plan.mini_batches == parts
    for part in range(parts):
        mine = [one for one in plan.samples if one.mini_batch == part]
        assert {one.group for one in mine} == set(range(part, groups, parts))
        assert sum(one.weight for one in mine) == pytest.approx(1.0)
