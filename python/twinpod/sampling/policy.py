"""The port of sampling policies: which prompts open the next groups.

A policy is a pure function of the books: what was drawn and how it went, nothing it remembers itself. So a resumed
master goes on with the very prompt that would have come next. `uniform` is the first; curriculum (by
`Prompt.difficulty`) and prioritised sampling (in proportion to 1 - success rate, by `PromptHistory`) are the same shape
with more of the history read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Draw", "PromptHistory", "SamplingPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One prompt to open a group with."""

    epoch: int  # pass over the data set, from 0
    prompt_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptHistory:
    """What the books know of one prompt, on the surviving line."""

    prompt_id: int
    difficulty: float  # 0 easy .. 1 hard, as the data set says
    attempts: int  # finished trajectories
    successes: int  # right ones among them


class SamplingPolicy(Protocol):
    """Chooses prompts."""

    def draw(self, taken: int, count: int, history: Callable[[], Sequence[PromptHistory]]) -> tuple[Draw, ...]:
        """The next `count` prompts after `taken` groups of the surviving line were opened.

        `history`: every prompt trained so far, by prompt id. It is read when called: a policy that needs none of it
        costs the same with 100,000 prompts as with 10.
        """
        ...
