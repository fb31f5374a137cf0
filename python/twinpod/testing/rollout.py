"""Fakes of the rollout room's ports: an engine, word of an engine, a master. No process, no network, no time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial

from twinpod.errors import EngineFault, StaleEpoch
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.rollout import PullRequest, WorkBatch, WorkItem, WorkResult
from twinpod.rollout.ports import EngineEndpoint, EngineOutput, EngineRequest, Finish

__all__ = ["FakeEngine", "FakeMaster", "FakeSource"]

Answer = Callable[[EngineRequest], Sequence[int]]


class FakeEngine:
    """Makes `answer(request)` token by token; no request gets beyond `limit` tokens until `allow` raises it."""

    def __init__(self, answer: Answer, *, version: int = 1, limit: float = float("inf")) -> None:
        self.answer, self.version, self.limit = answer, version, limit
        self.dead = False
        self.requests: list[EngineRequest] = []  # everything ever asked for
        self.aborts = 0
        self._cut: set[str] = set()
        self._changed = asyncio.Condition()

    async def allow(self, limit: float) -> None:
        """Let every request go on to `limit` tokens."""
        self.limit = limit
        await self._wake()

    async def die(self) -> None:
        """Break off every stream and refuse new ones."""
        self.dead = True
        await self._wake()

    async def generate(self, requests: Sequence[EngineRequest]) -> AsyncIterator[EngineOutput]:
        """See EnginePort."""
        self.requests.extend(requests)
        self._cut.difference_update(request.name for request in requests)
        outputs: asyncio.Queue[EngineOutput] = asyncio.Queue()
        tasks = [asyncio.create_task(self._run(request, outputs)) for request in requests]
        left = len(requests)
        dying = asyncio.create_task(self._death())
        try:
            while left:
                coming = asyncio.create_task(outputs.get())
                await asyncio.wait((coming, dying), return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    raise EngineFault("connection lost", where="fake engine")
                left -= coming.result().finish is not Finish.RUNNING
                yield coming.result()
        finally:
            for task in (*tasks, dying):
                task.cancel()

    async def abort(self, name: str) -> None:
        """See EnginePort."""
        self._cut.add(name)
        await self._wake()

    async def abort_all(self) -> None:
        """See EnginePort."""
        if self.dead:
            raise EngineFault("connection refused", where="fake engine")
        self.aborts += 1
        self._cut.update(request.name for request in self.requests)
        await self._wake()

    async def close(self) -> None:
        """See EnginePort."""

    async def _run(self, request: EngineRequest, outputs: asyncio.Queue[EngineOutput]) -> None:
        whole = tuple(self.answer(request))[: request.max_new_tokens]
        made = 0
        while made < len(whole) and request.name not in self._cut:
            if made < self.limit:
                made += 1
                if request.report_every and made % request.report_every == 0:
                    outputs.put_nowait(self._output(request, whole[:made], Finish.RUNNING))
                await asyncio.sleep(0)
            else:
                await self._until(partial(self._free, request.name, made))
        stopped = whole[:made] and whole[made - 1] in request.stop_token_ids
        finish = Finish.ABORT if made < len(whole) else Finish.STOP if stopped else Finish.LENGTH
        outputs.put_nowait(self._output(request, whole[:made], finish))

    def _output(self, request: EngineRequest, tokens: tuple[int, ...], finish: Finish) -> EngineOutput:
        return EngineOutput(
            name=request.name,
            tokens=TokenIds(tokens),
            logps=LogProbs([-0.5] * len(tokens)),
            finish=finish,
            version=self.version,
        )

    async def _death(self) -> None:
        await self._until(lambda: self.dead)

    def _free(self, name: str, made: int) -> bool:
        return made < self.limit or name in self._cut

    async def _until(self, true: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(true)

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class FakeSource:
    """An EngineSource whose word the test says."""

    def __init__(self, engine: FakeEngine | None = None) -> None:
        self._engine = engine
        self._starts = int(engine is not None)
        self.connected: list[FakeEngine] = []
        self._changed = asyncio.Condition()

    async def say(self, engine: FakeEngine | None) -> None:
        """From now on this engine serves, or none."""
        async with self._changed:
            self._engine = engine
            self._starts += 1
            self._changed.notify_all()

    def current(self) -> EngineEndpoint | None:
        """See EngineSource."""
        if self._engine is None:
            return None
        return EngineEndpoint(urls=(f"fake://{self._starts}",), api_key="", version=self._engine.version)

    async def changed(self, old: EngineEndpoint | None) -> EngineEndpoint | None:
        """See EngineSource."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.current() != old)
        return self.current()

    def connect(self, serving: EngineEndpoint) -> FakeEngine:
        """See EngineSource."""
        assert self._engine is not None
        self.connected.append(self._engine)
        return self._engine


class FakeMaster:
    """Gives items to whoever asks and has room, keeps what comes back; items that a worker lost are given anew."""

    def __init__(self, items: Sequence[WorkItem] = (), *, epoch: int = 1, version: int = 1) -> None:
        self.epoch, self.version, self.cut = epoch, version, False
        self.free = list(items)
        self.given: dict[str, tuple[str, WorkItem]] = {}  # item id: worker, item
        self._open: dict[str, set[int]] = {}  # item id: trajectories that are to come back
        self._back = 0  # items that have come back
        self.results: list[WorkResult] = []
        self.pulls: list[PullRequest] = []
        self._changed = asyncio.Condition()

    async def change(self, *, items: Sequence[WorkItem] = (), cut: bool = False, epoch: int | None = None) -> None:
        """Offer more items, begin or end a cut, or become a newer master."""
        async with self._changed:
            self.free.extend(items)
            self.cut, self.epoch = cut, epoch or self.epoch
            self._changed.notify_all()

    async def returned(self, count: int) -> list[WorkResult]:
        """Wait until so many items have come back in all; their results, each of some of an item's trajectories."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._back >= count)
        return self.results

    async def pull(self, pull: PullRequest) -> WorkBatch:
        """See MasterPort."""
        self.pulls.append(pull)
        lost = [key for key, (worker, _) in self.given.items() if worker == pull.worker and key not in pull.holding]
        self.free.extend(self.given.pop(key)[1] for key in lost)
        for key in lost:
            del self._open[key]
        async with self._changed:
            try:
                ready = self._changed.wait_for(lambda: bool((self.cut and pull.holding) or self._fitting(pull)))
                await asyncio.wait_for(ready, pull.wait_s or 1e-9)
            except TimeoutError:
                pass
        items = () if self.cut else tuple(self._fitting(pull))
        for item in items:
            self.free.remove(item)
            self.given[item.item_id] = (pull.worker, item)
            self._open[item.item_id] = {one.trajectory_id for one in item.trajectories}
        return WorkBatch(epoch=self.epoch, iteration=1, version=self.version, cut=self.cut, items=items)

    async def give(self, epoch: int, results: Sequence[WorkResult]) -> None:
        """See MasterPort."""
        if epoch != self.epoch:
            raise StaleEpoch(f"of epoch {epoch}, this is {self.epoch}")
        async with self._changed:
            for result in results:
                left = self._open.get(result.item_id, set())
                if left.intersection(result.trajectories):
                    new = tuple(segment for segment in result.segments if segment.trajectory_id in left)
                    self.results.append(replace(result, segments=new))
                    left.difference_update(result.trajectories)
                    if not left:
                        del self.given[result.item_id], self._open[result.item_id]
                        self._back += 1
            self._changed.notify_all()

    def _fitting(self, pull: PullRequest) -> list[WorkItem]:
        items, room = [], pull.capacity
        for item in self.free:
            if len(item.trajectories) <= room and not self.cut:
                items.append(item)
                room -= len(item.trajectories)
        return items
