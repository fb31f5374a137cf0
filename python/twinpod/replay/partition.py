"""Which data-parallel rank trains which samples, in which micro-batches. Pure.

The ranks of an iteration wait for each other, so what counts is the largest share of the work. A sample of n tokens
costs n for everything that is linear and n^2 / `attention_tokens` for attention. The costliest sample goes to the rank
with the least work, then the next one (longest processing time first): two ranks never differ by more than the cost of
one sample, and with many samples by far less than 5 %.

A rank's samples are sorted by length, longest first, and cut wherever a micro-batch would exceed the budget of padded
tokens. Every rank runs as many micro-batches as the one with the most.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from twinpod.errors import InputError
from twinpod.records.training import BatchPlan, DataLayout, PlannedSample


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One rank's share, by mini-batch and micro-batch."""

    micro_batches: tuple[int, ...]  # of each mini-batch, the same on every rank
    samples: tuple[tuple[PlannedSample, int], ...]  # with the micro-batch of each


def rank_plans(plan: BatchPlan, layout: DataLayout) -> tuple[RankPlan, ...]:
    """The whole batch, dealt to `layout.ranks` ranks. InputError for a layout that cannot be."""
    if layout.ranks < 1 or layout.micro_batch_tokens < 1 or layout.attention_tokens < 1:
        raise InputError(f"{layout} has a number below 1", where="training batch")
    shares: list[list[tuple[PlannedSample, int]]] = [[] for _ in range(layout.ranks)]
    load = [0] * layout.ranks
    counts = []
    for mini_batch in range(plan.mini_batches):
        samples = [one for one in plan.samples if one.mini_batch == mini_batch]
        costs = [cost(one.tokens, layout.attention_tokens) for one in samples]
        most = 0
        for rank, indices in enumerate(partition(costs, load)):
            load[rank] += sum(costs[i] for i in indices)
            mine = sorted((samples[i] for i in indices), key=lambda one: (-one.tokens, one.trajectory_id))
            pieces = micro_batches([one.tokens - 1 for one in mine], layout.micro_batch_tokens)
            shares[rank] += [(one, piece) for one, piece in zip(mine, pieces, strict=True)]
            most = max(most, pieces[-1] + 1 if pieces else 0)
        counts.append(most)
    return tuple(RankPlan(micro_batches=tuple(counts), samples=tuple(share)) for share in shares)


def cost(tokens: int, attention_tokens: int) -> int:
    """Work of one sample, in tokens x `attention_tokens`."""
    return tokens * (attention_tokens + tokens)


def partition(costs: Sequence[int], before: Sequence[int]) -> list[list[int]]:
    """Indices of `costs` for each rank, so that the sums are as even as may be.

    `before`: what each rank has from earlier mini-batches; it decides between ranks that have the same.
    """
    heap = [(0, earlier, rank) for rank, earlier in enumerate(before)]
    heapq.heapify(heap)
    parts: list[list[int]] = [[] for _ in before]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, earlier, rank = heap[0]
        parts[rank].append(index)
        heapq.heapreplace(heap, (load + costs[index], earlier, rank))
    return parts


def micro_batches(lengths: Sequence[int], budget: int) -> list[int]:
    """The micro-batch of each sequence; `lengths`: forward positions, longest first.

    A micro-batch is padded to its longest and has at most `budget` positions; a longer sequence is alone.
    """
    numbers: list[int] = []
    rows = longest = 0
    for length in lengths:
        if numbers and (rows + 1) * longest <= budget:
            rows += 1
            numbers.append(numbers[-1])
        else:
            rows, longest = 1, length
            numbers.append(numbers[-1] + 1 if numbers else 0)
    return numbers
