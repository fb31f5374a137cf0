"""Uniform sampling: every prompt once a pass, in an order of its own for every pass. Pure.

The order follows from seed and pass alone, so the place in it is one number: how many groups were opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from twinpod.sampling.policy import Draw, PromptHistory

__all__ = ["Uniform", "at", "order"]


@lru_cache(maxsize=2)
def order(size: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The prompt ids 0 .. size-1 as pass `epoch` goes through them. Stable across Python releases: only `Random.random`
    is drawn.
    """
    random = Random(f"{seed}/{epoch}")
    keys = [random.random() for _ in range(size)]
    return tuple(sorted(range(size), key=keys.__getitem__))


def at(taken: int, size: int, seed: int) -> Draw:
    """The prompt that comes after `taken` others, counted from the first of the first pass."""
    epoch, place = divmod(taken, size)
    return Draw(epoch=epoch, prompt_id=order(size, seed, epoch)[place])


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """The policy. `size`: training prompts of the data set."""

    size: int
    seed: int

    def draw(self, taken: int, count: int, history: Callable[[], Sequence[PromptHistory]]) -> tuple[Draw, ...]:
        """See SamplingPolicy; `history` is not read."""
        return tuple(at(taken + number, self.size, self.seed) for number in range(count))
