"""The port of rewards, and what it answers.

Later kinds have their place here: *composite* wraps several ports (a weighted sum; an error of one is an error of all),
*length* is no port but a function over the finished group, applied by the master after scoring (it needs all k lengths,
paper 5), code and judge are ports over the network. What runs code of a user's or of a data set's runs in processes of
its own (`master.judges`), several at once, each answer with a deadline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from twinpod.records.rollout import Prompt

__all__ = ["RewardPort", "Verdict", "masked", "verdict_of"]

MOST_REASON = 1000  # characters of a reason; it is kept with the answer


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


def verdict_of(answer: Any, who: str) -> Verdict:
    """What a reward written by others has answered: a number, or a Verdict whose fields are whatever they are.

    Numbers of any kind count, NumPy's and torch's too; a plain one is right from 1 on. Text, None and what is not
    finite mask the sample, by the name `who`. Pure.
    """
    reward, correct = (answer.reward, answer.correct) if isinstance(answer, Verdict) else (answer, None)
    if isinstance(answer, Verdict) and answer.error:
        return masked(str(answer.error))
    number = _number(reward)
    if number is None:
        return masked(f"{who}: answered {_short(reward)}, which is no number")
    if not math.isfinite(number):
        return masked(f"{who}: answered {number}")
    if correct is None:
        return Verdict(reward=number, correct=number >= 1)
    truth = _number(correct)
    if truth not in (0.0, 1.0):
        return masked(f"{who}: says that the answer is right: {_short(correct)}; that is neither true nor false")
    return Verdict(reward=number, correct=bool(truth))


def masked(why: str) -> Verdict:
    """No verdict."""
    return Verdict(reward=0.0, correct=False, error=why[:MOST_REASON])


def _number(value: Any) -> float | None:
    if isinstance(value, str | bytes | bytearray):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
