"""The port of rewards, and what it answers.

Later kinds have their place here: *composite* wraps several ports (a weighted sum; an error of one is an error of all),
*length* is no port but a function over the finished group, applied by the master after scoring (it needs all k lengths,
paper 5), code and judge are ports over the network, which the master calls in a thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from twinpod.records.rollout import Prompt

__all__ = ["RewardPort", "Verdict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One answer's score. An error masks the sample: it is in no group mean and in no loss, and never counts as reward
    0.
    """

    reward: float  # meaningless when `error` is set
    correct: bool  # wholly right
    error: str = ""  # why it could not be scored


class RewardPort(Protocol):
    """A way to score."""

    def score(self, prompt: Prompt, answer_text: str) -> Verdict:
        """Score one answer (decoded, without the token that ends it). Never raises for what the answer is."""
        ...
