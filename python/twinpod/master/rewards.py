"""Scores terminal trajectories off the event loop: a judge that takes its time must not hold the dispatch up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from twinpod.master.books import Scored
from twinpod.master.judges import Lost, Scorer
from twinpod.master.work_buffer import Ended
from twinpod.records.arrays import TokenIds
from twinpod.records.rollout import Stop


class Judge:
    """A scorer with a decoder and the penalty for repeating (design 8.2, 8.12).

    An error masks, it never scores 0. Answers become text only when it is their turn: long ones are many.
    """

    def __init__(self, scorer: Scorer, decode: Callable[[TokenIds], str], penalty: float, executor: Executor) -> None:
        self._scorer, self._decode, self._penalty, self._executor = scorer, decode, penalty, executor
        self._turns = asyncio.Semaphore(scorer.at_once)

    async def score(self, ended: Sequence[Ended]) -> tuple[Scored, ...]:
        """Verdicts in order."""
        return tuple(await asyncio.gather(*map(self._one, ended)))

    def text(self, tokens: TokenIds) -> str:
        """The answer as text."""
        return self._decode(tokens)

    async def _one(self, ended: Ended) -> Scored:
        one = ended.trajectory_id
        async with self._turns:
            answer = await asyncio.get_running_loop().run_in_executor(self._executor, self._decode, ended.tokens)
            try:
                verdict = await self._scorer.score(ended.prompt, answer)
            except Lost as lost:
                return Scored(
                    trajectory_id=one,
                    reward=None,
                    correct=False,
                    masked=lost.why,
                    lost="late" if lost.late else "ended",
                )
        if verdict.error:
            return Scored(trajectory_id=one, reward=None, correct=False, masked=verdict.error)
        reward = verdict.reward - (self._penalty if ended.stop is Stop.REPEAT else 0.0)
        return Scored(trajectory_id=one, reward=reward, correct=verdict.correct, masked="")
