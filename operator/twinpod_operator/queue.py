"""The keyed queue between events and workers: `schedule.py` with a clock and tasks.

    queue.add(key)                     from any event; cheap, at once
    await queue.run(work, workers=8)   until cancelled; `work(key)` says when to wake the key again

An error of `work` is told in one line and the key comes back after a growing delay; `LeaseLost` ends everything.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from twinpod.errors import TwinpodError
from twinpod_operator.kube_errors import Busy, LeaseLost
from twinpod_operator.nouns import Key
from twinpod_operator.schedule import Schedule

log = logging.getLogger(__name__)
Work = Callable[[Key], Awaitable[float | None]]
Meter = Callable[[float, str], None]  # seconds of one piece of work, and its outcome


class KeyQueue:
    """Life: made inside the event loop; `run` once."""

    def __init__(self, measure: Meter = lambda seconds, outcome: None) -> None:
        self._schedule: Schedule[Key] = Schedule()
        self._measure = measure
        self._changed = asyncio.Event()

    @property
    def depth(self) -> int:
        """Keys that are due now or later."""
        return len(self._schedule)

    @property
    def working(self) -> int:
        """Keys that workers have now."""
        return self._schedule.working

    def add(self, key: Key, after_s: float = 0.0, *, urgent: bool = False) -> None:
        """Wake the key, now or later; `urgent` when a person changed it, so that no back-off holds it."""
        self._schedule.add(key, time.monotonic() + after_s, urgent=urgent)
        self._changed.set()

    async def run(self, work: Work, *, workers: int) -> None:
        """Works with that many tasks until it is cancelled or the lease is lost."""
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._work(work))

    async def _work(self, work: Work) -> None:
        while True:
            key = await self._take()
            began = time.monotonic()
            try:
                wake = await work(key)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                delay = self._schedule.failed(key, time.monotonic())  # of something inside the work, not of the worker
                log.exception("%s %s/%s: again in %.1f s", key.kind, key.namespace, key.name, delay)
                self._measure(time.monotonic() - began, "bug")
            except LeaseLost:
                raise
            except TwinpodError as error:
                after = error.after_s if isinstance(error, Busy) else None
                delay = self._schedule.failed(key, time.monotonic(), after)
                log.warning("%s %s/%s: again in %.1f s: %s", key.kind, key.namespace, key.name, delay, error)
                self._measure(time.monotonic() - began, "error")
            except Exception:
                delay = self._schedule.failed(key, time.monotonic())
                log.exception("%s %s/%s: again in %.1f s", key.kind, key.namespace, key.name, delay)
                self._measure(time.monotonic() - began, "bug")
            else:
                self._schedule.done(key, time.monotonic(), wake)
                self._measure(time.monotonic() - began, "ok")
            self._changed.set()
            await asyncio.sleep(0)  # thousands of keys with nothing to do must not hold up the renewal of the lease

    async def _take(self) -> Key:
        while True:
            now = time.monotonic()
            if (key := self._schedule.take(now)) is not None:
                return key
            self._changed.clear()
            at = self._schedule.next_at()
            try:
                async with asyncio.timeout(None if at is None else at - now):
                    await self._changed.wait()
            except TimeoutError:
                continue
