"""Where the seconds go, and the live record that the operator, the command line and `inspect` read."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from twinpod.coordination.keys import Operation
from twinpod.master.registry import Registry
from twinpod.master.sinks import AsyncBooks
from twinpod.records.run import IterationRecord, PhaseSeconds, Progress

NO_SECONDS = PhaseSeconds(generate=0.0, train=0.0, weights=0.0, switch=0.0, snapshot=0.0, other=0.0)
_PARTS = ("generate", "train", "weights", "switch", "snapshot")


class PhaseTimer:
    """Wall seconds of one iteration. `spend` blocks follow each other; what lies between them is `other`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._began = clock, clock()
        self._spent = dict.fromkeys(_PARTS, 0.0)

    @contextmanager
    def spend(self, part: str) -> Iterator[None]:
        """Seconds of the block count for `part`."""
        began = self._clock()
        try:
            yield
        finally:
            self._spent[part] += self._clock() - began

    def move(self, source: str, target: str, seconds: float) -> None:
        """Seconds that were counted for `source` belong to `target`; never more than there are."""
        moved = max(0.0, min(seconds, self._spent[source]))
        self._spent[source] -= moved
        self._spent[target] += moved

    def seconds(self) -> PhaseSeconds:
        """So far."""
        total = self._clock() - self._began
        return PhaseSeconds(**self._spent, other=max(0.0, total - sum(self._spent.values())))


def eta_s(done: Sequence[IterationRecord], iterations: int) -> float:
    """Seconds to the last commit at the median pace of the last ten; nan before the first."""
    recent = sorted(record.seconds.total for record in done[-10:])
    if not recent:
        return math.nan
    return recent[len(recent) // 2] * max(0, iterations - done[-1].iteration)


class Reporter:
    """Keeps the record current.

    In the books at every phase, in etcd as it changes, the newest only, never in the way.
    """

    def __init__(self, registry: Registry, async_books: AsyncBooks, wall: Callable[[], float], iterations: int) -> None:
        self._registry, self._async_books, self._wall = registry, async_books, wall
        self._dirty = asyncio.Event()
        self.done: list[IterationRecord] = []
        self.now = Progress(
            state="Starting",
            epoch=0,
            iteration=0,
            iterations=iterations,
            version=0,
            phase="start",
            since=wall(),
            groups_finished=0,
            groups_wanted=0,
            reward=math.nan,
            right=math.nan,
            length=math.nan,
            tokens_per_s=math.nan,
            seconds=NO_SECONDS,
            waiting_for="",
            eta_s=math.nan,
            message="",
            updated=wall(),
        )
        registry.away = self._etcd_away

    async def phase(
        self, phase: str, *, iteration: int | None = None, state: str = "", waiting_for: str = "", message: str = ""
    ) -> None:
        """A new phase begins; written to the books before this returns."""
        state = state or (self.now.state if self.now.state not in ("Starting", "Degraded") else "Running")
        self._set(
            phase=phase,
            iteration=self.now.iteration if iteration is None else iteration,
            state=state,
            since=self._wall(),
            waiting_for=waiting_for,
            message=message,
        )
        now = self.now
        await self._async_books.do(lambda books: books.note(now))

    def wait(self, waiting_for: str) -> None:
        """Who is waited for within the phase."""
        if waiting_for != self.now.waiting_for:
            self._set(waiting_for=waiting_for)

    def groups(self, finished: int, wanted: int) -> None:
        """How far the rollout phase is."""
        if (finished, wanted) != (self.now.groups_finished, self.now.groups_wanted):
            self._set(groups_finished=finished, groups_wanted=wanted)

    def versions(self, epoch: int, version: int) -> None:
        """Epoch and committed version."""
        self._set(epoch=epoch, version=version)

    def history(self, done: Sequence[IterationRecord]) -> None:
        """The committed iterations; the newest one's numbers are shown."""
        self.done = list(done)
        if not done:
            return
        last = done[-1]
        pace = last.tokens_generated / last.seconds.generate if last.seconds.generate > 0 else math.nan
        self._set(
            reward=last.reward,
            right=last.right,
            length=last.length,
            tokens_per_s=pace,
            seconds=last.seconds,
            eta_s=eta_s(done, self.now.iterations),
        )

    async def tell_for_ever(self) -> None:
        """Writes to etcd whenever there is something new, at most twice a second."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self.tell()
            if self._registry.refused:
                self._dirty.set()  # again, until etcd takes it: so we know when it is back
            await asyncio.sleep(0.5)

    async def tell(self) -> None:
        """Write to etcd now."""
        now = self.now
        await self._registry.progress(now)
        await self._registry.say(
            Operation(epoch=now.epoch, iteration=now.iteration, phase=now.phase, version=now.version, since=now.since)
        )

    def _etcd_away(self, line: str) -> None:
        if line and self.now.state == "Running":
            self._set(state="Degraded", message=line)
        elif not line and self.now.state == "Degraded":
            self._set(state="Running", message="")

    def _set(self, **fields: object) -> None:
        self.now = replace(self.now, updated=self._wall(), **fields)  # type: ignore[arg-type]  # names of Progress's own fields
        self._dirty.set()
