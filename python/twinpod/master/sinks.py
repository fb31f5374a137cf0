"""What becomes of a phase's work: training phases go into the books, evaluations are kept until they are complete."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Self, TypeVar

from twinpod.master.books import Books, EvaluationAnswer, Scored
from twinpod.master.prompts import PromptSource
from twinpod.master.rewards import Judge
from twinpod.master.work_buffer import Ended
from twinpod.records.arrays import TokenIds
from twinpod.records.rollout import Group, GroupState, Prompt, Segment, Trajectory, WorkResult

T = TypeVar("T")


class AsyncBooks:
    """The books off the event loop: one thread, so that one call follows another."""

    def __init__(self, books: Books, executor: Executor) -> None:
        self.books, self._executor = books, executor

    async def do(self, act: Callable[[Books], T]) -> T:
        """Run `act` with the books in their thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, act, self.books)


class _Scoring:
    """Judging in the background.

    A phase runs within `async with`: its end waits for every verdict, its failure for none. `give_up` may come at any
    time: nothing is waited for any more, and the next start judges what has no verdict.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._tasks: set[asyncio.Task[None]] = set()
        self._given_up = False

    def judge(self, ended: Sequence[Ended]) -> None:
        """See Sink."""
        if not self._given_up:
            self._tasks.add(asyncio.create_task(self._score(ended)))

    def give_up(self) -> None:
        """Nobody waits for verdicts any more: a judge may take longer than there is time to leave."""
        self._given_up = True
        for task in self._tasks:
            task.cancel()

    async def drain(self) -> None:
        """Return when every verdict is in, or given up."""
        while self._tasks:
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
            self._tasks -= done
            for task in done:
                if not task.cancelled():
                    task.result()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            await self.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _score(self, ended: Sequence[Ended]) -> None:
        await self._keep(ended, await self._judge.score(ended))

    async def _keep(self, ended: Sequence[Ended], verdicts: Sequence[Scored]) -> None:
        raise NotImplementedError


class TrainingSink(_Scoring):
    """Segments and verdicts into the books, fresh groups from the prompt source."""

    def __init__(
        self, async_books: AsyncBooks, judge: Judge, source: PromptSource, *, size: int, iteration: int
    ) -> None:
        super().__init__(judge)
        self._async_books, self._source, self._size, self._iteration = async_books, source, size, iteration
        self._verdicts: list[Scored] = []  # that are not in the books yet
        self._writing = asyncio.Lock()

    async def begin(self, count: int) -> Sequence[Group]:
        """See Sink."""

        def act(books: Books) -> tuple[Group, ...]:
            return books.begin_groups(self._source.next(books.connection, count), self._size, self._iteration)

        return await self._async_books.do(act)

    async def store(self, results: Sequence[WorkResult]) -> Sequence[Segment]:
        """See Sink."""
        segments = [segment for result in results for segment in result.segments]
        refused = sum(result.refused_versions for result in results)

        def act(books: Books) -> tuple[Segment, ...]:
            books.count("versions_refused", refused)
            return books.store(segments, self._iteration).accepted

        return await self._async_books.do(act)

    async def _keep(self, ended: Sequence[Ended], verdicts: Sequence[Scored]) -> None:
        """Durable on return; what came while the disk was busy goes in one transaction."""
        self._verdicts += verdicts
        async with self._writing:
            if waiting := self._verdicts:
                self._verdicts = []
                await self._async_books.do(lambda books: books.score(waiting))


class EvaluationSink(_Scoring):
    """Answers to held-out prompts. Groups of one, with negative ids, so that nothing else takes them for its own."""

    def __init__(self, judge: Judge, prompts: Sequence[Prompt]) -> None:
        super().__init__(judge)
        self._texts = judge.text
        self.groups = tuple(_single(-1 - number, prompt) for number, prompt in enumerate(prompts))
        self._known: dict[int, int] = {group.trajectories[0].trajectory_id: 0 for group in self.groups}
        self.answers: list[EvaluationAnswer] = []

    async def begin(self, count: int) -> Sequence[Group]:
        """See Sink: all groups are there from the start."""
        return ()

    async def store(self, results: Sequence[WorkResult]) -> Sequence[Segment]:
        """See Sink."""
        fresh = []
        for segment in (segment for result in results for segment in result.segments):
            if self._known.get(segment.trajectory_id) == segment.index:
                self._known[segment.trajectory_id] += 1
                fresh.append(segment)
        return fresh

    def give_up_unanswered(self) -> int:
        """Prompts that no engine would answer count as wrong, without a reward. Returns how many."""
        answered = {answer.prompt_id for answer in self.answers}
        left = [group.prompt.prompt_id for group in self.groups if group.prompt.prompt_id not in answered]
        self.answers += [
            EvaluationAnswer(prompt_id=one, tokens=TokenIds(), answer="", reward=None, correct=False, masked="")
            for one in left
        ]
        return len(left)

    async def _keep(self, ended: Sequence[Ended], verdicts: Sequence[Scored]) -> None:
        self.answers += [
            EvaluationAnswer(
                prompt_id=one.prompt.prompt_id,
                tokens=one.tokens,
                answer=self._texts(one.tokens),
                reward=verdict.reward,
                correct=verdict.correct,
                masked=verdict.masked,
            )
            for one, verdict in zip(ended, verdicts, strict=True)
        ]


def _single(number: int, prompt: Prompt) -> Group:
    blank = Trajectory(trajectory_id=number, group_id=number, segments=(), reward=None)
    return Group(group_id=number, epoch=0, prompt=prompt, born=0, state=GroupState.OPEN, trajectories=(blank,))
