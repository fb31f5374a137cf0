"""The rollout worker's thin half: keeps an engine busy with a master's work and loses nothing.

Theory of operation
-------------------
One pull is under way at a time, a long poll. What it brings goes to the engine as one stream; every trajectory that
ends makes room at once, and one task gives whatever has ended to the master, again and again until it is stored. So a
fast engine gets more work simply because it asks more often. Without room the poll goes on, to hear of a cut; as soon
as there is room it is begun anew.

An item that was taken is *held* until the master has all its trajectories. Whatever goes wrong becomes part of a result
(`failed`): engine gone, answer of another version, worker told to stop. Each pull names the held items, so that an
answer lost on the way costs nothing either, and says how many tokens were generated since the last.

    no engine ──engine.json──► serving ──cut──► abort, wait for the streams, give back ──► serving
        ▲                         │
        └──── streams ended ◄─────┴── engine.json gone or another, or stop

Promises: no item is answered twice with different tokens by one worker; tokens that reached the worker before a cut are
given back; nothing that another weight version made is given back as a segment. When a newer master answers, what runs
is cut and given back to it; it knows what it can still use. What an older master says is not obeyed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from twinpod.errors import EngineFault, ProtocolError, StaleEpoch, TwinpodError, Unreachable, WrongVersion
from twinpod.records.rollout import PullRequest, Segment, WorkBatch, WorkItem, WorkResult
from twinpod.rollout import plan
from twinpod.rollout.ports import EngineEndpoint, EngineOutput, EnginePort, EngineSource, Finish, MasterPort
from twinpod.rpc.limits import MESSAGE_BYTES, closed_bytes, line, result_bytes, segment_bytes

__all__ = ["Worker", "WorkerSettings"]

log = logging.getLogger(__name__)

_End = asyncio.Task[Any]  # what ends the service of an engine: it is gone, or the worker is told to stop

_NOT_BEGUN = "cut before the first token"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """The worker's limits; times in seconds."""

    capacity: int  # trajectories at a time
    pull_wait_s: float = 5.0  # of a pull
    pause_s: float = 0.05  # before a pull after one that brought nothing but trouble
    retry_s: float = 0.1  # first wait before the master or a faulty engine is asked again; doubles
    retry_most_s: float = 2.0
    abort_again_s: float = 0.05  # an abort may miss requests that are on their way; it is repeated
    cut_s: float = 10.0  # after which an engine that does not obey an abort is given up
    farewell_s: float = 5.0  # to give back the last results when told to stop
    give_bytes: int = MESSAGE_BYTES  # in one message to the master


@dataclass(slots=True)
class _Held:
    """An item from pull to the last result."""

    item: WorkItem
    epoch: int
    began: float
    open: set[int]  # places whose last output is to come
    left: int  # places that the master does not have yet
    made: dict[int, int] = field(default_factory=dict)  # new tokens a place, as last heard
    repeating: set[int] = field(default_factory=set)  # places that were told to end


@dataclass(frozen=True, slots=True)
class _Closed:
    """A trajectory that the worker is done with, until the master has it."""

    held: _Held
    trajectory_id: int
    segment: Segment | None
    trouble: str  # empty when there is a segment
    refused: bool  # other weights answered

    @property
    def nbytes(self) -> int:
        """In a message."""
        return closed_bytes(self.trouble) + (segment_bytes(self.segment) if self.segment else 0)


class Worker:
    """One worker beside one engine. Life: made by the wiring, `run` until told to stop. All state lives in its event
    loop.
    """

    def __init__(self, name: str, master: MasterPort, engines: EngineSource, settings: WorkerSettings) -> None:
        self._name, self._master, self._engines, self._settings = name, master, engines, settings
        self._epoch = 0
        self._held: dict[str, _Held] = {}
        self._ready: list[_Closed] = []  # in order
        self._generated = 0  # tokens since the last pull that was answered
        self._streams: set[asyncio.Task[None]] = set()
        self._running = 0  # trajectories in the engine
        self._faults = 0  # of the engine in a row
        self._freed = asyncio.Event()
        self._some_ready = asyncio.Event()
        self._none_ready = asyncio.Event()
        self._none_ready.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; then cut, give back what there is and return. Never raises for what others do.

        A fault of ours in giving is raised, once the engine is idle: a worker that gives nothing back must not go on.
        """
        giver = asyncio.create_task(self._give_for_ever())
        giver.add_done_callback(lambda _: stop.set())  # it ends by a fault alone, or when we cancel it
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                serving = self._engines.current()
                if serving is not None:
                    await self._serve(serving, stopping)
                    continue
                word = asyncio.create_task(self._engines.changed(None))
                await _first(word, stopping)
                word.cancel()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._none_ready.wait(), self._settings.farewell_s)
        finally:
            stopping.cancel()
            giver.cancel()
            await asyncio.gather(giver, stopping, return_exceptions=True)
        if not giver.cancelled():
            giver.result()
        if self._ready:
            log.warning("stopped with %d answers that the master did not take", len(self._ready))

    async def _serve(self, serving: EngineEndpoint, stopping: asyncio.Task[bool]) -> None:
        """Keep one engine busy until it is gone or the worker is told to stop."""
        log.info("%s serve version %d", ", ".join(serving.urls), serving.version)
        engine = self._engines.connect(serving)
        gone = asyncio.create_task(self._engines.changed(serving))
        self._faults = 0
        try:
            while not (gone.done() or stopping.done()):
                if self._faults and self._running < self._settings.capacity:
                    await _first(gone, stopping, timeout=_backoff(self._settings, self._faults))
                pulling = asyncio.create_task(self._pull(serving))
                await self._first_or_room(pulling, gone, stopping)
                if not pulling.done():  # what it would have brought is not in `holding` of the next pull
                    pulling.cancel()
                    await asyncio.gather(pulling, return_exceptions=True)
                elif (pulled := pulling.result()) is not None:
                    await self._obey(pulled, serving, engine, gone, stopping)
        finally:
            gone.cancel()
            await self._cut(engine)
            await engine.close()

    async def _first_or_room(self, *tasks: asyncio.Task[Any]) -> None:
        """Return when one of the tasks is done, or when there is room where there was none."""
        if self._running < self._settings.capacity:
            await _first(*tasks)
            return
        self._freed.clear()
        freed = asyncio.create_task(self._freed.wait())
        await _first(freed, *tasks)
        freed.cancel()

    async def _pull(self, serving: EngineEndpoint) -> WorkBatch | None:
        """One pull; None when the master could not be asked (after a pause) or is older than one already seen."""
        generated = self._generated
        pull = PullRequest(
            worker=self._name,
            epoch=self._epoch,
            version=serving.version,
            capacity=max(0, self._settings.capacity - self._running),
            wait_s=self._settings.pull_wait_s,
            tokens_generated=generated,
            holding=tuple(self._held),
        )
        try:
            pulled = await self._master.pull(pull)
        except TwinpodError as error:
            log.warning("no work: %s", error)
            await asyncio.sleep(self._settings.retry_s)
            return None
        self._generated -= generated
        if pulled.epoch >= self._epoch:
            return pulled
        log.warning("a master of epoch %d answers, epoch %d was seen", pulled.epoch, self._epoch)
        await asyncio.sleep(self._settings.retry_s)
        return None

    async def _obey(self, pulled: WorkBatch, serving: EngineEndpoint, engine: EnginePort, *ends: _End) -> None:
        """Do what the master's answer says."""
        newer = 0 < self._epoch < pulled.epoch
        self._epoch = pulled.epoch
        if newer or pulled.cut:
            idle = not self._held
            await self._cut(engine)
            given = asyncio.create_task(self._none_ready.wait())
            await _first(given, *ends)
            given.cancel()
            if pulled.cut and idle:
                await asyncio.sleep(self._settings.pause_s)
        fresh = [item for item in pulled.items if item.item_id not in self._held]
        if fresh and not self._begin(fresh, serving, engine):
            await asyncio.sleep(self._settings.pause_s)

    def _begin(self, items: Sequence[WorkItem], serving: EngineEndpoint, engine: EnginePort) -> bool:
        """Hold the items and start the engine on those that it can do; False when there is none."""
        now = asyncio.get_running_loop().time()
        able: list[_Held] = []
        for item in items:
            count = len(item.trajectories)
            held = _Held(item=item, epoch=self._epoch, began=now, open=set(range(count)), left=count)
            self._held[item.item_id] = held
            self._running += count
            if reason := plan.refusal(item, serving.version):
                for place in range(count):
                    self._close(held, place, trouble=reason, refused=item.version != serving.version)
            else:
                able.append(held)
        if able:
            self._start(able, engine)
        return bool(able)

    def _start(self, items: Sequence[_Held], engine: EnginePort) -> None:
        stream = asyncio.create_task(self._stream(items, engine))
        self._streams.add(stream)
        stream.add_done_callback(self._streams.discard)

    async def _stream(self, items: Sequence[_Held], engine: EnginePort) -> None:
        """Follow one stream to its end; whatever ends it, every place of it is closed."""
        places = {plan.request_name(held.item, place): (held, place) for held in items for place in held.open}
        reason, heard = "the engine ended the stream too early", False
        try:
            async for output in engine.generate([request for held in items for request in plan.requests(held.item)]):
                heard = True
                if output.name not in places:
                    raise ProtocolError("the engine answers a request that was not made", where=output.name)
                await self._hear(output, *places[output.name], engine)
        except asyncio.CancelledError:
            reason = "the engine was given up: it did not obey an abort"
            raise
        except TwinpodError as error:
            reason = error.line()
            log.warning("the engine failed: %s", reason)
            if isinstance(error, ProtocolError) and not heard and len(items) > 1:
                places = {}  # one request that the engine refuses must not take the others with it
                for held in items:
                    self._start([held], engine)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            log.exception("the worker failed")  # a fault of ours must not lose the items either
        finally:
            left = [(held, place) for held, place in places.values() if place in held.open]
            self._faults += bool(left)
            for held, place in left:
                self._close(held, place, trouble=reason)

    async def _hear(self, output: EngineOutput, held: _Held, place: int, engine: EnginePort) -> None:
        """Take one output: look for a repeat in a running one, make a segment of a last one."""
        if place not in held.open:
            return
        seen = held.made.get(place, 0)
        held.made[place] = len(output.tokens)
        self._generated += len(output.tokens) - seen
        if output.finish is Finish.RUNNING:
            if place not in held.repeating and plan.repeats(held.item, place, output.tokens, seen) is not None:
                held.repeating.add(place)  # told once
                try:
                    await engine.abort(output.name)
                except TwinpodError as error:  # it runs on in vain; what is too much is cut off at its end
                    log.warning("a repeating answer could not be stopped: %s", error)
            return
        try:
            segment = plan.segment(held.item, place, output, self._name)
        except WrongVersion as error:
            self._close(held, place, trouble=error.line(), refused=True)
        except (ProtocolError, EngineFault) as error:
            self._close(held, place, trouble=error.line())
        else:
            self._faults = 0
            self._close(held, place, segment, trouble="" if segment else _NOT_BEGUN)

    def _close(
        self, held: _Held, place: int, segment: Segment | None = None, *, trouble: str = "", refused: bool = False
    ) -> None:
        """One trajectory of an item is done with: there is room, and the master is to have it."""
        held.open.discard(place)
        self._running -= 1
        self._freed.set()
        one = held.item.trajectories[place].trajectory_id
        self._ready.append(_Closed(held, one, segment, line(trouble), refused))
        self._none_ready.clear()
        self._some_ready.set()

    async def _cut(self, engine: EnginePort) -> None:
        """End all streams: abort again and again, since an abort misses what is on its way; give up an engine that does
        not obey.
        """
        end = asyncio.get_running_loop().time() + self._settings.cut_s
        while self._streams and asyncio.get_running_loop().time() < end:
            try:
                await engine.abort_all()
            except (EngineFault, Unreachable) as error:
                log.info("no abort: %s", error)  # an engine that is gone ends its streams by itself
            if self._streams:
                await asyncio.wait(self._streams, timeout=self._settings.abort_again_s)
        for stream in self._streams:
            stream.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)

    async def _give_for_ever(self) -> None:
        """Give what has ended to the master; keep it until it is stored."""
        failures = 0
        while True:
            await self._some_ready.wait()
            closed = self._next_message()
            epoch = closed[0].held.epoch
            try:
                await self._master.give(epoch, self._results(closed))
                failures = 0
            except TwinpodError as error:
                if error.retryable:
                    failures += 1
                    log.warning("results wait: %s", error)
                    await asyncio.sleep(_backoff(self._settings, failures))
                    continue
                log.log(logging.INFO if isinstance(error, StaleEpoch) else logging.ERROR, "results dropped: %s", error)
            for one in closed:
                one.held.left -= 1
                if not one.held.left and self._held.get(one.held.item.item_id) is one.held:
                    del self._held[one.held.item.item_id]
            del self._ready[: len(closed)]
            if not self._ready:
                self._some_ready.clear()
                self._none_ready.set()

    def _next_message(self) -> list[_Closed]:
        """The first that are ready, of one epoch, as many as fit into a message; one at least."""
        closed: list[_Closed] = []
        items: set[str] = set()
        size = 0
        for one in self._ready:
            item_id = one.held.item.item_id
            size += one.nbytes + (0 if item_id in items else result_bytes(item_id, self._name))
            if closed and (size > self._settings.give_bytes or one.held.epoch != closed[0].held.epoch):
                break
            items.add(item_id)
            closed.append(one)
        return closed

    def _results(self, closed: Sequence[_Closed]) -> list[WorkResult]:
        """One result an item."""
        now = asyncio.get_running_loop().time()
        items: dict[str, list[_Closed]] = {}
        for one in closed:
            items.setdefault(one.held.item.item_id, []).append(one)
        return [
            WorkResult(
                item_id=item_id,
                worker=self._name,
                trajectories=tuple(one.trajectory_id for one in ones),
                segments=tuple(one.segment for one in ones if one.segment),
                failed="; ".join(dict.fromkeys(one.trouble for one in ones if one.trouble)),
                refused_versions=sum(one.refused for one in ones),
                seconds=now - ones[0].held.began,
            )
            for item_id, ones in items.items()
        ]


def _backoff(settings: WorkerSettings, failures: int) -> float:
    """Seconds before the next try: doubling, with an end."""
    return float(min(settings.retry_most_s, settings.retry_s * 2 ** min(failures - 1, 16)))


async def _first(*tasks: asyncio.Task[Any], timeout: float | None = None) -> None:
    """Return when one of the tasks is done, or after `timeout` seconds; none is cancelled."""
    await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
