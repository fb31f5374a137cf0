"""Who scores answers: rewards of our own in a thread, all others in processes that can be killed.

A reward that hangs, crashes or leaves processes behind costs the answer that it was asked about, and nothing else: the
sample is masked with the reason, the process is ended with everything that it had started, and the next answer gets a
new one. So as many answers are judged at once as the job has judges (`reward.processes`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from threading import Lock
from typing import Protocol

from twinpod.api.types import JobSpec
from twinpod.errors import EnvironmentFault, Unreachable
from twinpod.master.judge_process import JudgeProcess, JudgeSetup
from twinpod.records.rollout import Prompt
from twinpod.reward.choose import choose
from twinpod.reward.port import RewardPort, Verdict

__all__ = ["InProcess", "JudgePool", "Lost", "Scorer", "open_scorer"]

log = logging.getLogger(__name__)


class Lost(Exception):  # no fault of ours: the answer has no verdict
    """The process that should have judged was ended, or has ended. `late`: its deadline had passed."""

    def __init__(self, why: str, *, late: bool) -> None:
        self.why, self.late = why, late
        super().__init__(why)


class Scorer(Protocol):
    """Scores answers off the event loop, `at_once` of them at the same time."""

    at_once: int

    async def score(self, prompt: Prompt, answer: str) -> Verdict:
        """See RewardPort; Lost when nobody is left to say."""
        ...


class InProcess:
    """A reward of our own, in a thread of the executor's."""

    at_once = 1

    def __init__(self, port: RewardPort, executor: Executor) -> None:
        self._port, self._executor = port, executor

    async def score(self, prompt: Prompt, answer: str) -> Verdict:
        """See Scorer."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._port.score, prompt, answer)


class JudgePool:
    """Judges that are started as they are needed. Life: `start`, any number of `score`, `close`.

    A judge is asked by one thread at a time; `_all` are those that live, `_idle` those that nobody asks now.
    """

    def __init__(self, setup: JudgeSetup, keys: Mapping[int, int], *, at_once: int, within_s: float) -> None:
        """`keys`: by prompt id, for the data set's own score; may be filled until the first `score`."""
        self.at_once, self._setup, self._keys, self._within_s = at_once, setup, keys, within_s
        self._threads = ThreadPoolExecutor(at_once, "judge")
        self._idle: list[JudgeProcess] = []
        self._all: set[JudgeProcess] = set()
        self._lock, self._closed = Lock(), False

    async def start(self) -> None:
        """The first judge. InputError when the reward is not there, and whatever else keeps it from starting."""
        judge = await asyncio.get_running_loop().run_in_executor(self._threads, self._new)
        self._idle.append(judge)

    async def score(self, prompt: Prompt, answer: str) -> Verdict:
        """See Scorer."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._score, prompt, answer)

    def close(self) -> None:
        """End every judge and wait for it; who still waits for an answer gets none."""
        with self._lock:
            self._closed, judges = True, list(self._all)
        for judge in judges:
            judge.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _score(self, prompt: Prompt, answer: str) -> Verdict:
        try:
            judge = self._take()
            try:
                verdict = judge.score(prompt, self._keys.get(prompt.prompt_id, -1), answer, self._within_s)
            except EnvironmentFault:
                with self._lock:
                    self._all.discard(judge)
                raise
        except Unreachable as error:
            log.warning("a judge was ended", extra={"prompt": prompt.prompt_id, "why": error.what})
            raise Lost(error.line(), late=True) from error
        except EnvironmentFault as error:
            log.warning("a judge has ended", extra={"prompt": prompt.prompt_id, "why": error.what})
            raise Lost(error.line(), late=False) from error
        with self._lock:
            self._idle.append(judge)
        return verdict

    def _take(self) -> JudgeProcess:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._new()

    def _new(self) -> JudgeProcess:
        judge = JudgeProcess(self._setup)
        with self._lock:
            if not self._closed:
                self._all.add(judge)
                return judge
        judge.close()
        raise EnvironmentFault("the run ends", where="reward")


async def open_scorer(job: JobSpec, keys: Mapping[int, int], thread: Executor, stack: AsyncExitStack) -> Scorer:
    """Who scores the job's answers until the stack ends; `keys` as in JudgePool. InputError when there is no reward."""
    setup = JudgeSetup(reward=job.reward, dataset=job.dataset, seed=job.seed)
    if not setup.apart:
        return InProcess(choose(job.reward, None), thread)
    pool = JudgePool(setup, keys, at_once=job.reward.processes, within_s=job.reward.timeout_seconds)
    stack.callback(pool.close)
    await pool.start()
    return pool
