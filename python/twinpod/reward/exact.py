"""1 for the reference answer, 0 for any other. Pure."""

from __future__ import annotations

from twinpod.records.rollout import Prompt
from twinpod.reward.port import Verdict

__all__ = ["Exact"]


class Exact:
    """The reward `kind: exact`. White space around the answer does not matter; inside it does."""

    def score(self, prompt: Prompt, answer_text: str) -> Verdict:
        """See RewardPort."""
        correct = prompt.answer.strip() == answer_text.strip()
        return Verdict(reward=float(correct), correct=correct)
