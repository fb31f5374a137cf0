"""Which prompts begin next: those whose groups were given up first, then the sampling policy's choice."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from twinpod.master import books_read as read
from twinpod.records.rollout import Prompt
from twinpod.sampling.policy import PromptHistory, SamplingPolicy


class PromptSource:
    """Prompts in the order of the policy. Remembers nothing: its place is read from the books."""

    def __init__(self, prompts: Sequence[Prompt], held_out: Sequence[Prompt], policy: SamplingPolicy) -> None:
        self._prompts, self.held_out, self._policy = tuple(prompts), tuple(held_out), policy

    def next(self, db: sqlite3.Connection, count: int) -> tuple[tuple[Prompt, int], ...]:
        """The next `count` (prompt, pass) pairs."""
        again = read.given_up(db, count)
        draws = self._policy.draw(read.opened(db), count - len(again), lambda: _histories(db))
        pairs = (*again, *((draw.prompt_id, draw.epoch) for draw in draws))
        return tuple((self._prompts[prompt_id], number) for prompt_id, number in pairs)


def _histories(db: sqlite3.Connection) -> tuple[PromptHistory, ...]:
    return tuple(
        PromptHistory(prompt_id=prompt_id, difficulty=difficulty, attempts=tries, successes=right)
        for prompt_id, difficulty, tries, right in read.histories(db)
    )
