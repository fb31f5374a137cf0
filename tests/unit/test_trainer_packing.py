"""The data loader: padding, masks, blanks, and that nothing is lost on the way."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpod.errors import InputError
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.training import GIVEN, RankBatch, Sample, TokenRun, TrainSettings
from twinpod.testing.batches import rank_batches, sample
from twinpod.trainer.packing import DataLoader, MicroBatch, largest_micro_batch


def _samples(count: int, seed: int = 0) -> list[Sample]:
    rng = random.Random(seed)
    found = []
    for i in range(count):
        answer = rng.randrange(1, 9)
        found.append(
            sample(
                i,
                i // 2,
                [rng.randrange(20) for _ in range(rng.randrange(1, 5))],
                [rng.randrange(20) for _ in range(answer)],
                [-rng.random() for _ in range(answer)],
                sorted(rng.randrange(1, 3) for _ in range(answer)),
                advantage=rng.uniform(-1, 1),
            )
        )
    return found


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 80), st.integers(0, 5))
def test_every_rank_gets_as_many_micro_batches_and_nothing_is_lost(
    count: int, ranks: int, budget: int, seed: int
) -> None:
    made = _samples(count, seed)
    batches = rank_batches(made, iteration=4, version=2, group_size=2, ranks=ranks, budget=budget)
    loaded = [list(DataLoader(batch, "all", 1000).all()) for batch in batches]
    assert len({len(micros) for micros in loaded}) == 1
    rows = sorted(row for micros in loaded for micro in micros for row in _rows(micro))
    assert rows == sorted(
        (tuple(one.tokens), len(one.logps), round(float(np.float32(one.advantage)), 5)) for one in made
    )
    for micros in loaded:
        assert [micro.index for micro in micros] == list(range(len(micros)))
        for micro in micros:
            assert micro.tokens_BL.size <= max(budget, micro.tokens_BL.shape[1])
    total = sum(float(micro.weight_B.sum()) for micros in loaded for micro in micros)
    assert total == pytest.approx(1.0, abs=1e-5)


def _rows(micro: MicroBatch) -> list[tuple[tuple[int, ...], int, float]]:
    """Each real row as (all tokens, response tokens, advantage)."""
    rows = []
    for i in np.flatnonzero(micro.weight_B):
        last = int(np.flatnonzero(micro.mask_BL[i])[-1])
        tokens = (*micro.tokens_BL[i, : last + 1].tolist(), int(micro.targets_BL[i, last]))
        rows.append((tokens, int(micro.mask_BL[i].sum()), round(float(micro.advantage_B[i]), 5)))
    return rows


def _single(one: Sample, version: int = 2) -> MicroBatch:
    (batch,) = rank_batches([one], iteration=1, version=version, group_size=1)
    (micro,) = DataLoader(batch, "all", 1000).all()
    return micro


def test_a_response_token_stands_at_the_position_before_it() -> None:
    micro = _single(sample(9, 0, (5, 6), (7, 8), (-0.5, -0.25), (1, 2), advantage=2.0))
    assert micro.trajectories == (9,)
    assert micro.tokens_BL.tolist() == [[5, 6, 7]]
    assert micro.targets_BL.tolist() == [[6, 7, 8]]
    assert micro.mask_BL.tolist() == [[0, 1, 1]]
    assert micro.on_policy_BL.tolist() == [[0, 0, 1]]
    assert micro.behaviour_BL.tolist() == [[0, -0.5, -0.25]]
    assert micro.positions_BL.tolist() == [[0, 1, 2]]


def test_tokens_given_between_generated_ones_are_context_and_never_in_the_loss() -> None:
    runs = tuple(TokenRun(version=version, count=count) for version, count in ((GIVEN, 2), (2, 1), (GIVEN, 3), (1, 1)))
    one = replace(
        sample(1, 0, (), (), (), ()), tokens=TokenIds(range(10, 17)), logps=LogProbs((-0.5, -0.25)), runs=runs
    )
    micro = _single(one)
    assert micro.tokens_BL.tolist() == [[10, 11, 12, 13, 14, 15]]
    assert micro.mask_BL.tolist() == [[0, 1, 0, 0, 0, 1]]
    assert micro.on_policy_BL.tolist() == [[0, 1, 0, 0, 0, 0]]
    assert micro.behaviour_BL.tolist() == [[0, -0.5, 0, 0, 0, -0.25]]


def test_mini_batches_are_the_parts_of_one_batch() -> None:
    made = [replace(one, mini_batch=one.group % 2, weight=0.25) for one in _samples(8)]
    (batch,) = rank_batches(made, iteration=4, version=2, group_size=2, budget=20)
    loader = DataLoader(batch, "all", 1000)
    parts = [[micro.index for micro in loader.mini_batch(number)] for number in range(loader.mini_batches)]
    assert [one for part in parts for one in part] == [micro.index for micro in loader.all()]
    trained = [{t for micro in loader.mini_batch(number) for t in micro.trajectories} for number in (0, 1)]
    assert trained == [{0, 1, 4, 5}, {2, 3, 6, 7}]


@pytest.mark.parametrize(
    "changes",
    [
        {"logps": LogProbs((0.0,))},
        {"tokens": TokenIds((1, 2))},
        {"runs": (TokenRun(version=1, count=3),)},
        {"runs": (TokenRun(version=GIVEN, count=3),), "logps": LogProbs()},
    ],
)
def test_a_sample_that_does_not_add_up_is_refused_by_its_trajectory(changes: dict[str, object]) -> None:
    one = replace(sample(3, 0, (1,), (2, 3), (0.0, 0.0), (1, 1)), **changes)  # type: ignore[arg-type]
    batch = RankBatch(iteration=1, version=1, group_size=1, micro_batches=(1,), samples=(one,))
    with pytest.raises(InputError, match="trajectory 3 has"):
        DataLoader(batch, "all", 1000)


def test_a_sample_beyond_the_bound_is_refused_by_its_trajectory_and_the_field() -> None:
    one = sample(812, 0, (1, 2), (3, 4), (0.0, 0.0), (1, 1))
    batch = RankBatch(iteration=1, version=1, group_size=1, micro_batches=(1,), samples=(one,))
    assert len(list(DataLoader(batch, "all", 3).all())) == 1
    with pytest.raises(InputError) as caught:
        DataLoader(batch, "all", 2)
    assert "trajectory 812 has 4 tokens" in caught.value.line()
    assert "spec.algorithm.maxMicroBatchTokens" in caught.value.line()


@pytest.mark.parametrize(
    ("micro", "most", "context", "expected"), [(8, None, 64, 64), (100, None, 64, 100), (8, 16, 64, 16)]
)
def test_the_bound_is_the_jobs_or_the_models_context(micro: int, most: int | None, context: int, expected: int) -> None:
    settings = TrainSettings(
        learning_rate=1e-3,
        betas=(0.9, 0.95),
        weight_decay=0.0,
        eps=1e-8,
        tau=0.1,
        temperature=1.0,
        mask="all",
        steps=1,
        clip_grad=1.0,
        micro_batch_tokens=micro,
        max_micro_batch_tokens=most,
    )
    assert largest_micro_batch(settings, context) == expected


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(InputError, match="iteration 7 has no samples"):
        DataLoader(RankBatch(iteration=7, version=1, group_size=1, micro_batches=(), samples=()), "all", 1000)
