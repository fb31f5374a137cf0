"""Share of the answer that is right from its beginning. Pure.

    reward = matched / max(len(reference), len(text)),  matched = characters that agree before the first that does not

For the reference "edcba": "edcba" 1, "ed" 0.4 (missing ones count), "edxba" 0.4 (nothing counts after a mistake),
"edcbaa" 5/6 and "edcbaaaaaa" 0.5: an answer that is too long loses in proportion, so that ending in time is worth
something, and only the right answer gets 1.
"""

from __future__ import annotations

from itertools import takewhile

from twinpod.records.rollout import Prompt
from twinpod.reward.port import Verdict

__all__ = ["Prefix", "prefix_share"]


def prefix_share(reference: str, text: str) -> float:
    """0 to 1, as defined above; two empty texts agree."""
    longest = max(len(reference), len(text))
    matched = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reference, text, strict=False)))
    return matched / longest if longest else 1.0


class Prefix:
    """The reward `kind: prefix`."""

    def score(self, prompt: Prompt, answer_text: str) -> Verdict:
        """See RewardPort."""
        return Verdict(reward=prefix_share(prompt.answer, answer_text), correct=prompt.answer == answer_text)
