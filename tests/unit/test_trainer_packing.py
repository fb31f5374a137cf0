"""Packing: budgets, the data-parallel deal, and that nothing is lost on the way."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpod.errors import InputError
from twinpod.records.training import Batch, Sample
from twinpod.trainer.packing import MicroBatch, cut, deal, pack
from twinpod.trainer.wire import pack_batch, unpack_batch


def _sample(rng: random.Random, group: int) -> Sample:
    answer = rng.randrange(1, 9)
    return Sample(
        group=group,
        prompt_tokens=tuple(rng.randrange(20) for _ in range(rng.randrange(1, 5))),
        response_tokens=tuple(rng.randrange(20) for _ in range(answer)),
        behaviour_logps=tuple(-rng.random() for _ in range(answer)),
        versions=tuple(rng.randrange(3) for _ in range(answer)),
        advantage=rng.uniform(-1, 1),
        reward=rng.random(),
    )


def _batch(count: int, seed: int = 0) -> Batch:
    rng = random.Random(seed)
    return Batch(iteration=4, version=2, group_size=2, samples=tuple(_sample(rng, i // 2) for i in range(count)))


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 80), st.integers(0, 5))
def test_every_rank_gets_as_many_micro_batches_and_nothing_is_lost(
    count: int, ranks: int, budget: int, seed: int
) -> None:
    batch = _batch(count, seed)
    dealt = [pack(batch, mask="all", budget=budget, dp_rank=rank, dp_size=ranks) for rank in range(ranks)]
    assert len({len(micros) for micros in dealt}) == 1
    rows = sorted(row for micros in dealt for micro in micros for row in _rows(micro))
    assert rows == sorted(
        (sample.prompt_tokens + sample.response_tokens, len(sample.response_tokens), round(sample.advantage, 5))
        for sample in batch.samples
    )
    for micros in dealt:
        for micro in micros:
            assert micro.tokens_BL.size <= max(budget, micro.tokens_BL.shape[1])
    total = sum(float(micro.weight_B.sum()) for micros in dealt for micro in micros)
    assert total == pytest.approx(1.0, abs=1e-5)


def _rows(micro: MicroBatch) -> list[tuple[tuple[int, ...], int, float]]:
    """Each real row as (all tokens, response tokens, advantage)."""
    rows = []
    for i in np.flatnonzero(micro.weight_B):
        last = int(np.flatnonzero(micro.mask_BL[i])[-1])
        tokens = (*micro.tokens_BL[i, : last + 1].tolist(), int(micro.targets_BL[i, last]))
        rows.append((tokens, int(micro.mask_BL[i].sum()), round(float(micro.advantage_B[i]), 5)))
    return rows


def test_a_response_token_stands_at_the_position_before_it() -> None:
    sample = Sample(
        group=0,
        prompt_tokens=(5, 6),
        response_tokens=(7, 8),
        behaviour_logps=(-0.5, -0.25),
        versions=(1, 2),
        advantage=2.0,
        reward=1.0,
    )
    (micro,) = pack(
        Batch(iteration=1, version=2, group_size=1, samples=(sample,)), mask="all", budget=8, dp_rank=0, dp_size=1
    )
    assert micro.tokens_BL.tolist() == [[5, 6, 7]]
    assert micro.targets_BL.tolist() == [[6, 7, 8]]
    assert micro.mask_BL.tolist() == [[0, 1, 1]]
    assert micro.on_policy_BL.tolist() == [[0, 0, 1]]
    assert micro.behaviour_BL.tolist() == [[0, -0.5, -0.25]]
    assert micro.positions_BL.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([5, 5, 3], 10, [[0, 1], [2]]),
        ([5, 5, 3], 4, [[0], [1], [2]]),
        ([5, 5, 3], 15, [[0, 1, 2]]),
        ([], 15, []),
    ],
)
def test_cut(lengths: list[int], budget: int, expected: list[list[int]]) -> None:
    assert cut(list(range(len(lengths))), lengths, budget) == expected


def test_deal_is_by_length_and_stable() -> None:
    assert deal([1, 3, 3, 2], 2) == [[1, 3], [2, 0]]


@pytest.mark.parametrize("field", ["behaviour_logps", "versions"])
def test_a_sample_with_missing_columns_is_refused(field: str) -> None:
    fields = {"behaviour_logps": (0.0, 0.0), "versions": (1, 1), field: (1,)}
    sample = Sample(group=3, prompt_tokens=(1,), response_tokens=(2, 3), advantage=0.0, reward=0.0, **fields)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="group 3 has 1 prompt tokens, 2 response"):
        pack(Batch(iteration=1, version=1, group_size=1, samples=(sample,)), mask="all", budget=8, dp_rank=0, dp_size=1)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(InputError, match="iteration 7 has no samples"):
        pack(Batch(iteration=7, version=1, group_size=1, samples=()), mask="all", budget=8, dp_rank=0, dp_size=1)


@given(st.integers(1, 12), st.integers(0, 3))
def test_a_batch_survives_the_wire(count: int, seed: int) -> None:
    batch = _batch(count, seed)
    assert unpack_batch(pack_batch(batch)) == batch
