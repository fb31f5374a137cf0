"""Samples without a master: made from plain numbers, and divided as a master would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.training import GIVEN, BatchPlan, DataLayout, PlannedSample, RankBatch, Sample, TokenRun
from twinpod.replay.partition import rank_plans


def sample(
    trajectory_id: int,
    group: int,
    prompt: Sequence[int],
    answer: Sequence[int],
    logps: Sequence[float],
    versions: Sequence[int],
    *,
    advantage: float = 0.0,
    weight: float = 0.0,
    reward: float = 0.0,
) -> Sample:
    """One version a token of the answer."""
    runs = [TokenRun(version=GIVEN, count=len(prompt))]
    for version in versions:
        if runs[-1].version == version:
            runs[-1] = replace(runs[-1], count=runs[-1].count + 1)
        else:
            runs.append(TokenRun(version=version, count=1))
    return Sample(
        trajectory_id=trajectory_id,
        group=group,
        mini_batch=0,
        micro_batch=0,
        tokens=TokenIds([*prompt, *answer]),
        logps=LogProbs(logps),
        runs=tuple(runs),
        advantage=advantage,
        weight=weight,
        reward=reward,
    )


def rank_batches(
    samples: Sequence[Sample], *, iteration: int, version: int, group_size: int, ranks: int = 1, budget: int = 1 << 20
) -> tuple[RankBatch, ...]:
    """The batch of every rank. Samples without a weight get that of a mean over groups of means over samples."""
    sizes = {one.group: sum(other.group == one.group for other in samples) for one in samples}
    weighted = {
        one.trajectory_id: replace(one, weight=one.weight or 1.0 / (len(sizes) * sizes[one.group])) for one in samples
    }
    assert len(weighted) == len(samples), "every sample needs a trajectory of its own"
    plan = BatchPlan(
        iteration=iteration,
        version=version,
        group_size=group_size,
        mini_batches=max([0, *(one.mini_batch + 1 for one in samples)]),
        samples=tuple(_planned(one) for one in weighted.values()),
    )
    layout = DataLayout(ranks=ranks, micro_batch_tokens=budget, attention_tokens=1000)
    return tuple(
        RankBatch(
            iteration=iteration,
            version=version,
            group_size=group_size,
            micro_batches=mine.micro_batches,
            samples=tuple(replace(weighted[one.trajectory_id], micro_batch=micro) for one, micro in mine.samples),
        )
        for mine in rank_plans(plan, layout)
    )


def _planned(one: Sample) -> PlannedSample:
    return PlannedSample(
        trajectory_id=one.trajectory_id,
        group=one.group,
        mini_batch=one.mini_batch,
        tokens=len(one.tokens),
        generated=len(one.logps),
        advantage=one.advantage,
        weight=one.weight,
        reward=one.reward,
    )
