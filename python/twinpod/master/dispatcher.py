"""The dispatcher: where rollout workers ask for work and hand it in. It runs one `WorkBuffer` at a time.

Theory of operation. `run` lays a buffer on the dispatcher and returns when it is done. Meanwhile `pull` answers workers
(items, `cut`, or nothing after their wait) and `give` takes results: first the sink stores them, then the buffer
learns what was new, so that nothing counts before it is durable. Results that come while others are being stored are
stored together. Who may find something to do is woken: for work those with room, for the end of a phase everybody. A
worker says what it holds with every pull: what it should hold and does not was lost on the way and is handed out
again; so is what a silent worker holds. It also says how many tokens it made since the last pull: a phase in which no
token is made is stuck, one without a finished answer is not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from twinpod.errors import EngineFault, StaleEpoch, Unreachable
from twinpod.master.work_buffer import Ended, WorkBuffer
from twinpod.records.rollout import Group, PullRequest, Segment, WorkBatch, WorkItem, WorkResult

log = logging.getLogger(__name__)


class Sink(Protocol):
    """What becomes of a phase's work."""

    async def begin(self, count: int) -> Sequence[Group]:
        """Fresh groups for free slots; fewer when there are none."""
        ...

    async def store(self, results: Sequence[WorkResult]) -> Sequence[Segment]:
        """Make results durable; returns the segments that are new."""
        ...

    def judge(self, ended: Sequence[Ended]) -> None:
        """Have terminal trajectories scored, in the background."""
        ...


class Roster(Protocol):
    """Who takes part in a phase; may change while it runs."""

    @property
    def engines(self) -> int:
        """How many engines share the work."""
        ...

    def takes_part(self, pod: str) -> bool:
        """Whether a worker may be given work."""
        ...

    def is_awaited(self, pod: str) -> bool:
        """Whether the end of the phase waits long for what the worker was cut in."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRoster:
    """Whoever asks takes part."""

    engines: int = 1

    def takes_part(self, pod: str) -> bool:
        """See Roster."""
        return True

    def is_awaited(self, pod: str) -> bool:
        """See Roster."""
        return True


FILL_GROUPS = 64  # begun for one pull; the next one begins more: a thousand at once would hold everybody up


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the dispatcher waits, in seconds."""

    silent_worker_s: float = 45.0  # longer than a worker's longest pull
    cut_s: float = 60.0  # to give back what was cut
    helper_cut_s: float = 3.0  # the same, for workers that nobody waits for
    stall_s: float = 900.0  # without a token from any engine while work is to be done
    tick_s: float = 1.0


_Give = tuple[Sequence[WorkResult], asyncio.Future[int]]


@dataclass(slots=True)
class _Phase:
    buffer: WorkBuffer
    sink: Sink
    roster: Roster
    alive: float  # when the last token was heard of
    gives: list[_Give] = field(default_factory=list)  # that wait to be stored
    storing: asyncio.Task[None] | None = None


class Dispatcher:
    """Life: as long as the master; `epoch` is set once it is known. One phase at a time."""

    def __init__(self, clock: Callable[[], float], patience: Patience | None = None) -> None:
        self.epoch = 0
        self._clock, self._patience = clock, patience or Patience()
        self._phase: _Phase | None = None
        self._changed = asyncio.Event()  # there may be work
        self._turned = asyncio.Event()  # a phase began, closes or is over
        self._filling = asyncio.Lock()
        self._iteration = 0
        self._closed = False

    async def run(self, buffer: WorkBuffer, sink: Sink, roster: Roster, tell: Callable[[int, int], None]) -> None:
        """One rollout phase, to its end.

        `tell`: finished and wanted groups. Unreachable when no worker gets anything done, EngineFault when all that
        came were failures.
        """
        assert self._phase is None, "one phase at a time"
        self._phase = phase = _Phase(buffer=buffer, sink=sink, roster=roster, alive=self._clock())
        self._iteration = buffer.iteration
        closed_at: float | None = None
        try:
            buffer.settle()
            if self._closed:
                buffer.close()
            self._turn()
            while not buffer.done:
                await self._wait(self._patience.tick_s)
                now = self._clock()
                tell(buffer.finished, buffer.rules.wanted)
                if lost := buffer.lose_silent(now, self._patience.silent_worker_s):
                    log.warning("items lost with their worker", extra={"items": lost})
                    self._wake()
                if buffer.closing:
                    if closed_at is None:
                        self._turn()
                    closed_at = closed_at or now
                    self._lose_late(phase, now - closed_at, self._patience)
                elif now - phase.alive > self._patience.stall_s:
                    raise Unreachable(
                        f"no token was generated for {self._patience.stall_s:.0f} s",
                        where="rollout workers",
                        mend="see the inference containers' logs",
                    )
        finally:
            self._phase = None
            self._turn()
        if buffer.failures and not buffer.tokens and not buffer.finished:
            raise EngineFault(
                f"all {buffer.failures} answers failed, the last one so: {buffer.last_failure}",
                where="rollout workers",
                mend="see the engines' logs",
            )

    def close(self) -> None:
        """End the phase that runs, and each that comes: what is being generated is cut and taken back."""
        self._closed = True
        if self._phase:
            self._phase.buffer.close()
            self._turn()

    def lose(self, worker: str) -> None:
        """A worker is gone for good: what it holds is handed out again."""
        if self._phase and (items := self._phase.buffer.reclaim(worker, ())):
            log.warning("items lost with their worker", extra={"worker": worker, "items": items})
            self._wake()

    @staticmethod
    def _lose_late(phase: _Phase, waited_s: float, patience: Patience) -> None:
        """The phase is over and waits for what was cut: not for ever, and for workers that only help hardly at all."""
        buffer = phase.buffer
        if waited_s > patience.cut_s:
            log.warning("cut work was not returned", extra={"items": buffer.lose_all()})
        elif waited_s > patience.helper_cut_s:
            for worker in (worker for worker in buffer.holders() if not phase.roster.is_awaited(worker)):
                log.info("cut work is not waited for", extra={"worker": worker, "items": buffer.reclaim(worker, ())})

    async def pull(self, asked: PullRequest) -> WorkBatch:
        """Answer a worker within `wait_s` seconds. StaleEpoch when the worker has seen a newer master than us."""
        if asked.epoch > self.epoch > 0:
            raise StaleEpoch(
                f"worker {asked.worker} has seen epoch {asked.epoch}, this is epoch {self.epoch}", where="master"
            )
        until = self._clock() + asked.wait_s
        if self._phase and asked.tokens_generated:
            self._phase.alive = self._clock()
        if self._phase and self._phase.buffer.reclaim(asked.worker, asked.holding):
            log.warning("items lost on the way", extra={"worker": asked.worker})
            self._wake()
        while True:
            changed = self._changed if asked.capacity > 0 else self._turned
            if (answer := await self._answer(asked.worker, asked.version, asked.capacity)) is not None:
                return answer
            left = until - self._clock()
            if left <= 0 or not await _happens(changed, left):
                return self._pulled(cut=False, items=())

    async def give(self, epoch: int, results: Sequence[WorkResult]) -> int:
        """Take results, of older epochs too (what is stored already, or belongs to a given-up line, is refused
        there). Returns segments stored.

        Work of a phase that is over is kept when the books can still use it.
        """
        if epoch > self.epoch > 0:
            raise StaleEpoch(f"results of epoch {epoch}, this is epoch {self.epoch}", where="master")
        phase = self._phase
        if phase is None:
            raise Unreachable("no rollout phase is open", where="master", mend="give it again with the next one")
        stored: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        phase.gives.append((results, stored))
        if phase.storing is None:
            phase.storing = asyncio.create_task(self._store(phase))
        return await stored

    async def _store(self, phase: _Phase) -> None:
        """Everything that waits, in one go; again for what came meanwhile."""
        while phase.gives:
            gives, phase.gives = phase.gives, []
            try:
                stored = await phase.sink.store([result for results, _ in gives for result in results])
            except Exception as error:  # noqa: BLE001  # every caller is told
                for _, answer in gives:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            fresh = {(segment.trajectory_id, segment.index): segment for segment in stored}
            for results, answer in gives:
                count = sum(self._learn(phase, result, fresh) for result in results)
                if not answer.done():
                    answer.set_result(count)
                await asyncio.sleep(0)  # others have their turn: there may be thousands of answers
            phase.alive = self._clock()
            if phase.buffer.closing:
                self._turn()
            elif phase.buffer.ready or phase.buffer.room():
                self._wake()
        phase.storing = None

    def _learn(self, phase: _Phase, result: WorkResult, fresh: dict[tuple[int, int], Segment]) -> int:
        """The buffer hears of a result; what is new of it is taken out of `fresh`. Returns how many segments were."""
        known = [fresh.pop((segment.trajectory_id, segment.index), None) for segment in result.segments]
        mine = [segment for segment in known if segment]
        taken = phase.buffer.returned(result, mine, self._clock())
        if taken.ended and phase is self._phase:  # else the next phase finds them unscored
            phase.sink.judge(taken.ended)
        if result.failed:
            log.warning("work failed", extra={"item": result.item_id, "worker": result.worker, "why": result.failed})
        return len(mine)

    async def _answer(self, worker: str, version: int, capacity: int) -> WorkBatch | None:
        phase = self._phase
        if phase is None:
            return None
        buffer = phase.buffer
        buffer.heard(worker, self._clock())
        if buffer.closing:
            return self._pulled(cut=True, items=()) if buffer.holds(worker) else None
        if version != buffer.version or capacity <= 0 or not phase.roster.takes_part(worker):
            return None
        if buffer.room():  # to its end, also when the worker hangs up: groups that were begun are in the buffer
            await asyncio.shield(asyncio.create_task(self._fill(phase)))
        items = buffer.take(worker, capacity, phase.roster.engines, self._clock())
        return self._pulled(cut=False, items=items) if items else None

    async def _fill(self, phase: _Phase) -> None:
        async with self._filling:
            if room := phase.buffer.room():
                for group in await phase.sink.begin(min(room, FILL_GROUPS)):
                    phase.buffer.admit(group, {})

    def _pulled(self, *, cut: bool, items: tuple[WorkItem, ...]) -> WorkBatch:
        version = self._phase.buffer.version if self._phase else 0
        return WorkBatch(epoch=self.epoch, iteration=self._iteration, version=version, cut=cut, items=items)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _turn(self) -> None:
        self._turned.set()
        self._turned = asyncio.Event()
        self._wake()

    async def _wait(self, seconds: float) -> None:
        await _happens(self._changed, seconds)


async def _happens(event: asyncio.Event, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
