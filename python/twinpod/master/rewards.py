"""Scores terminal trajectories off the event loop: a judge over the network must not hold the dispatch up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from twinpod.master.books import Scored
from twinpod.master.work_buffer import Ended
from twinpod.records.arrays import TokenIds
from twinpod.records.rollout import Stop
from twinpod.reward.port import RewardPort


class Judge:
    """A reward port with a decoder and the penalty for repeating (design 8.2, 8.12).

    An error masks, it never scores 0.
    """

    def __init__(self, port: RewardPort, decode: Callable[[TokenIds], str], penalty: float, executor: Executor) -> None:
        self._port, self._decode, self._penalty, self._executor = port, decode, penalty, executor

    async def score(self, ended: Sequence[Ended]) -> tuple[Scored, ...]:
        """Verdicts in order."""
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: tuple(self._one(one) for one in ended)
        )

    def text(self, tokens: TokenIds) -> str:
        """The answer as text."""
        return self._decode(tokens)

    def _one(self, ended: Ended) -> Scored:
        verdict = self._port.score(ended.prompt, self._decode(ended.tokens))
        if verdict.error:
            return Scored(trajectory_id=ended.trajectory_id, reward=None, correct=False, masked=verdict.error)
        reward = verdict.reward - (self._penalty if ended.stop is Stop.REPEAT else 0.0)
        return Scored(trajectory_id=ended.trajectory_id, reward=reward, correct=verdict.correct, masked="")
