"""Replay's policies: hold, age, choice, baselines, batches."""

from __future__ import annotations

import math

import numpy as np
import pytest

from twinpod.errors import InputError
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.rollout import Group, GroupState, Prompt, Segment, Stop, Trajectory
from twinpod.replay.baseline import Baseline, advantages
from twinpod.replay.policy import Held, build_batch, choose, complete, too_old, usable

PROMPT = Prompt(prompt_id=1, text="p", answer="a", difficulty=0.0, tokens=TokenIds((2, 3)))


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


def test_a_batch_carries_one_version_a_token_and_leaves_masked_trajectories_out() -> None:
    def chain(one: int, reward: float | None) -> Trajectory:
        first = Segment(
            trajectory_id=one,
            index=0,
            version=4,
            tokens=TokenIds((7, 8)),
            logps=LogProbs((-1.0, -2.0)),
            stop=Stop.CUT,
            pod="w",
        )
        last = Segment(
            trajectory_id=one,
            index=1,
            version=5,
            tokens=TokenIds((1,)),
            logps=LogProbs((-3.0,)),
            stop=Stop.EOS,
            pod="w",
        )
        return Trajectory(trajectory_id=one, group_id=1, segments=(first, last), reward=reward)

    trajectories = (chain(3, 1.0), chain(4, None), chain(5, 0.0))
    group = Group(group_id=1, epoch=0, prompt=PROMPT, born=1, state=GroupState.FINISHED, trajectories=trajectories)
    batch = build_batch([group], iteration=6, version=5, baseline=Baseline.MEAN, tau=0.1, size=3)
    assert [sample.advantage for sample in batch.samples] == [0.5, -0.5]
    sample = batch.samples[0]
    assert (sample.response_tokens, sample.versions, sample.behaviour_logps) == (
        (7, 8, 1),
        (4, 4, 5),
        (-1.0, -2.0, -3.0),
    )
    assert not math.isnan(sample.reward)
