"""The data set's own score (reasoning-gym's `score_answer`)."""

from __future__ import annotations

import logging
from typing import Protocol

from twinpod.records.rollout import Prompt
from twinpod.reward.port import Verdict, masked, verdict_of

__all__ = ["DatasetReward", "Verifier"]

log = logging.getLogger(__name__)

FULL = 1.0 - 1e-9  # a score from here on is a right answer


class Verifier(Protocol):
    """What an open data set brings along."""

    def score(self, prompt_id: int, text: str) -> float:
        """0 to 1; may raise anything."""
        ...


class DatasetReward:
    """The reward `kind: dataset`. A verifier that raises, or answers no finite number, masks the sample."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

    def score(self, prompt: Prompt, answer_text: str) -> Verdict:
        """See RewardPort."""
        try:
            verdict = verdict_of(self._verifier.score(prompt.prompt_id, answer_text), "verifier")
        except Exception as error:  # noqa: BLE001  # foreign code; a fault of the verifier's is no verdict on the answer
            log.warning("prompt %d could not be scored: %s: %s", prompt.prompt_id, type(error).__name__, error)
            return masked(f"verifier: {type(error).__name__}: {error}")
        return verdict if verdict.error else Verdict(reward=verdict.reward, correct=verdict.reward >= FULL)
