"""Uniform sampling: every prompt once a pass, in an order of its own for every pass. Pure.

The order follows from seed, pass and size alone, so the place in it is one number: how many groups were opened. A data
set may grow between two starts: what is new is mixed with what is left of the pass under way, and comes in every
later one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from twinpod.sampling.policy import Draw, PromptHistory

__all__ = ["Growth", "Uniform", "at", "order"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """After `taken` draws there are `size` prompts."""

    taken: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """One pass: it begins after `start` draws; `grown` are the growths within it, in order."""

    epoch: int
    start: int
    size: int  # when it began
    grown: tuple[Growth, ...]

    @property
    def length(self) -> int:
        """Draws of the whole pass."""
        return self.grown[-1].size if self.grown else self.size


@lru_cache(maxsize=4)
def order(size: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The prompt ids 0 .. size-1 as pass `epoch` goes through them. Stable across Python releases: only `Random.random`
    is drawn.
    """
    return _shuffled(range(size), f"{seed}/{epoch}")


@lru_cache(maxsize=4)
def _order_of(one: _Pass, seed: int) -> tuple[int, ...]:
    ids = order(one.size, seed, one.epoch)
    size = one.size
    for growth in one.grown:
        done = growth.taken - one.start
        left = (*ids[done:], *range(size, growth.size))
        ids = (*ids[:done], *_shuffled(left, f"{seed}/{one.epoch}/{growth.size}"))
        size = growth.size
    return ids


def _shuffled(ids: Sequence[int], seed: str) -> tuple[int, ...]:
    random = Random(seed)
    keys = [random.random() for _ in ids]
    return tuple(ids[place] for place in sorted(range(len(ids)), key=keys.__getitem__))


@lru_cache(maxsize=1024)
def _pass_of(taken: int, growth: tuple[Growth, ...]) -> _Pass:
    """The pass that draw number `taken` belongs to. Costs one step a growth, not one a pass."""
    epoch = start = number = 0
    while True:
        while number + 1 < len(growth) and growth[number + 1].taken <= start:
            number += 1
        size, within, end = growth[number].size, [], start + growth[number].size
        later = growth[number + 1 :]
        before = min(taken, later[0].taken) if later else taken
        if whole := (before - start) // size:  # passes that nothing interrupts
            epoch, start = epoch + whole, start + whole * size
            continue
        for one in later:
            if one.taken >= end:
                break
            within.append(one)
            end = start + one.size
        if taken < end:
            return _Pass(epoch=epoch, start=start, size=size, grown=tuple(within))
        epoch, start = epoch + 1, end


def at(taken: int, size: int, seed: int, grown: tuple[Growth, ...] = ()) -> Draw:
    """The prompt that comes after `taken` others, counted from the first of the first pass."""
    one = _pass_of(taken, (Growth(taken=0, size=size), *grown))
    return Draw(epoch=one.epoch, prompt_id=_order_of(one, seed)[taken - one.start])


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """The policy. `size`: training prompts when the run began; `grown`: how many since when, in order."""

    size: int
    seed: int
    grown: tuple[Growth, ...] = ()

    def draw(self, taken: int, count: int, history: Callable[[], Sequence[PromptHistory]]) -> tuple[Draw, ...]:
        """See SamplingPolicy; `history` is not read."""
        return tuple(at(taken + number, self.size, self.seed, self.grown) for number in range(count))
