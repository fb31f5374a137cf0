"""Dealing a batch to ranks: by work, evenly, the same number of micro-batches, and nothing lost."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpod.errors import InputError
from twinpod.records.training import BatchPlan, DataLayout, PlannedSample
from twinpod.replay.partition import RankPlan, cost, micro_batches, partition, rank_plans


def planned(lengths: list[int], mini_batches: int = 1) -> BatchPlan:
    samples = tuple(
        PlannedSample(
            trajectory_id=number, group=number, mini_batch=number % mini_batches, tokens=tokens, generated=tokens - 1,
            advantage=0.0, weight=1.0, reward=0.0,
        )
        for number, tokens in enumerate(lengths)
    )  # fmt: skip
    return BatchPlan(iteration=1, version=1, group_size=1, mini_batches=mini_batches, samples=samples)


def work(one: RankPlan, layout: DataLayout, mini_batch: int | None = None) -> int:
    return sum(
        cost(sample.tokens, layout.attention_tokens)
        for sample, _ in one.samples
        if mini_batch in (None, sample.mini_batch)
    )


@pytest.mark.parametrize(
    ("costs", "before", "expected"),
    [
        ([1, 3, 3, 2], [0, 0], [[1, 3], [2, 0]]),
        ([5], [0, 0, 0], [[0], [], []]),
        ([5], [9, 0], [[], [0]]),  # the rank that had less so far
        ([9, 1, 1, 1, 1, 1], [0, 0], [[0], [1, 2, 3, 4, 5]]),  # one long answer weighs as much as many short ones
        ([], [0, 0], [[], []]),
    ],
)
def test_the_costliest_sample_goes_to_the_rank_with_the_least_work(
    costs: list[int], before: list[int], expected: list[list[int]]
) -> None:
    assert partition(costs, before) == expected


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([5, 5, 3], 10, [0, 0, 1]),
        ([5, 5, 3], 4, [0, 1, 2]),
        ([5, 5, 3], 15, [0, 0, 0]),
        ([], 15, []),
    ],
)
def test_a_micro_batch_is_cut_where_padding_would_exceed_the_budget(
    lengths: list[int], budget: int, expected: list[int]
) -> None:
    assert micro_batches(lengths, budget) == expected


@pytest.mark.parametrize(("ranks", "longest"), [(8, 8192), (8, 32_768), (64, 131_072)])
def test_ranks_of_a_real_batch_differ_by_at_most_five_percent(ranks: int, longest: int) -> None:
    """1,000 prompts x 16 answers: many short ones, a long tail up to the limit, as answers of a model are."""
    rng = random.Random(ranks)
    plan = planned([1 + min(longest, int(rng.lognormvariate(8, 1.5))) for _ in range(16_000)])
    layout = DataLayout(ranks=ranks, micro_batch_tokens=longest, attention_tokens=50_000)
    loads = [work(one, layout) for one in rank_plans(plan, layout)]
    assert max(loads) <= 1.05 * min(loads)


@given(
    st.lists(st.integers(2, 300), min_size=1, max_size=60),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(1, 500),
    st.integers(1, 1000),
)
def test_every_sample_has_one_place_and_every_rank_as_many_micro_batches(
    lengths: list[int], ranks: int, mini_batches: int, budget: int, attention: int
) -> None:
    plan = planned(lengths, mini_batches)
    layout = DataLayout(ranks=ranks, micro_batch_tokens=budget, attention_tokens=attention)
    ways = rank_plans(plan, layout)
    assert sorted(one.trajectory_id for way in ways for one, _ in way.samples) == list(range(len(lengths)))
    assert len({way.micro_batches for way in ways}) == 1
    for way in ways:
        for mini_batch, count in enumerate(way.micro_batches):
            rows = [(micro, one.tokens) for one, micro in way.samples if one.mini_batch == mini_batch]
            for number in range(count):
                mine = [tokens - 1 for micro, tokens in rows if micro == number]
                assert len(mine) <= 1 or len(mine) * max(mine) <= budget
            assert all(micro < count for micro, _ in rows)
    for mini_batch in range(mini_batches):
        loads = [work(way, layout, mini_batch) for way in ways]
        costs = [cost(one.tokens, attention) for one in plan.samples if one.mini_batch == mini_batch]
        assert max(loads) - min(loads) <= max(costs, default=0)


@pytest.mark.parametrize("changes", [{"ranks": 0}, {"micro_batch_tokens": 0}, {"attention_tokens": 0}])
def test_a_layout_that_cannot_be_is_refused(changes: dict[str, int]) -> None:
    numbers = {"ranks": 1, "micro_batch_tokens": 1, "attention_tokens": 1} | changes
    with pytest.raises(InputError, match="below 1"):
        rank_plans(planned([3]), DataLayout(**numbers))
