"""When each key's turn is: the pure core of the queue. Time is given, never read.

A key waits at most once, however often it is added. While a worker has it, a further `add` is remembered and makes it
due again as soon as the worker gives it back, so that no event is lost and no key is worked on twice at once.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 60.0


class Schedule(Generic[K]):
    """Life: as long as the queue. Invariant: a key is in one place: waiting with one time, or in work."""

    def __init__(self, spread: Callable[[], float] = lambda: random.uniform(0.75, 1.25)) -> None:
        self._spread = spread
        self._due: dict[K, float] = {}  # waiting keys with their time
        self._heap: list[tuple[float, int, K]] = []  # entries whose time is not the one in _due are stale
        self._order = 0
        self._working: dict[K, float | None] = {}  # key in work, and when it was asked for again meanwhile
        self._failures: dict[K, int] = {}
        self._floor: dict[K, float] = {}  # not before this, after a failure
        self._urgent: set[K] = set()  # in work, and a person changed it meanwhile

    def __len__(self) -> int:
        return len(self._due)

    @property
    def working(self) -> int:
        """Keys that workers have now."""
        return len(self._working)

    def add(self, key: K, at: float, *, urgent: bool = False) -> None:
        """The key is due at `at`, or earlier if it is already.

        After a failure it waits out its back-off, however busy its children are; a change by a person (`urgent`)
        ends that.
        """
        if urgent:
            self._floor.pop(key, None)
            if key in self._working:
                self._urgent.add(key)
        at = max(at, self._floor.get(key, at))
        if key in self._working:
            asked = self._working[key]
            self._working[key] = at if asked is None else min(asked, at)
        elif key not in self._due or at < self._due[key]:
            self._due[key] = at
            self._order += 1
            heapq.heappush(self._heap, (at, self._order, key))

    def next_at(self) -> float | None:
        """When the first key is due; None when none waits."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now: float) -> K | None:
        """The key that is due longest, now in work; None when none is due."""
        at = self.next_at()
        if at is None or at > now:
            return None
        key = heapq.heappop(self._heap)[2]
        del self._due[key]
        self._floor.pop(key, None)
        self._working[key] = None
        return key

    def done(self, key: K, now: float, wake_after_s: float | None) -> None:
        """The work on it went well; it is due again in `wake_after_s` at the latest, if given."""
        self._failures.pop(key, None)
        self._give_back(key, None if wake_after_s is None else now + wake_after_s)

    def failed(self, key: K, now: float, after_s: float | None = None) -> float:
        """The work on it failed; it is due again after `after_s`, else after a time that doubles with each failure.

        Returns the delay.
        """
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        delay = after_s if after_s is not None else min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(count, 16))
        delay *= self._spread()
        if key in self._urgent:
            delay = 0.0
        self._floor[key] = now + delay
        self._give_back(key, now + delay)
        return delay

    def _give_back(self, key: K, at: float | None) -> None:
        asked = self._working.pop(key)
        self._urgent.discard(key)
        times = [time for time in (asked, at) if time is not None]
        if times:
            self.add(key, min(times))
