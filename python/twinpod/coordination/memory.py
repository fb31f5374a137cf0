"""The store in memory, for tests and for a job within one process. Time is given, never read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from twinpod.coordination.store import Change, Entry, checked
from twinpod.errors import Conflict, Unreachable


@dataclass(frozen=True, slots=True)
class _Held:
    entry: Entry
    expires: float | None


class MemoryStore:
    """Life: as long as its object. `now`: a clock in seconds; after moving it, call `expire` so that watchers see
    what ran out.

    Setting `away` makes every call raise `Unreachable`, as an etcd that is down; watches go quiet until it is back.
    """

    def __init__(self, now: Callable[[], float] = lambda: 0.0) -> None:
        self._now = now
        self._held: dict[str, _Held] = {}
        self._revision = 0
        self._changed = asyncio.Event()
        self.away = False

    async def get(self, key: str) -> Entry | None:
        """See Store."""
        self._enter()
        held = self._held.get(key)
        return held.entry if held else None

    async def list(self, prefix: str) -> tuple[Entry, ...]:
        """See Store."""
        self._enter()
        return self._under(prefix)

    async def put(self, key: str, value: str, *, expect: int | None = None, lease_s: float | None = None) -> int:
        """See Store."""
        self._enter()
        checked(key, value)
        found = self._held[key].entry.revision if key in self._held else 0
        if expect is not None and expect != found:
            raise Conflict(f"has revision {found}, not {expect}", where=key, mend="read it again")
        self._revision += 1
        entry = Entry(key=key, value=value, revision=self._revision)
        self._held[key] = _Held(entry, None if lease_s is None else self._now() + lease_s)
        self._tell()
        return self._revision

    async def delete(self, key: str) -> bool:
        """See Store."""
        self._enter()
        if self._held.pop(key, None) is None:
            return False
        self._revision += 1
        self._tell()
        return True

    async def watch(self, prefix: str) -> AsyncIterator[Change]:
        """See Store."""
        seen: dict[str, Entry] = {}
        while True:
            changed = self._changed
            if not self.away:
                present = {entry.key: entry for entry in self._under(prefix)}
                for change in differences(seen, present):
                    yield change
                seen = present
            await changed.wait()

    def expire(self) -> None:
        """Drop the keys whose lease has run out by the clock, and let watchers look."""
        gone = [key for key, held in self._held.items() if held.expires is not None and held.expires <= self._now()]
        for key in gone:
            del self._held[key]
            self._revision += 1
        self._tell()

    def _enter(self) -> None:
        if self.away:
            raise Unreachable("does not answer", where="etcd in memory", mend="set away to False")
        self.expire()

    def _under(self, prefix: str) -> tuple[Entry, ...]:
        return tuple(self._held[key].entry for key in sorted(self._held) if key.startswith(prefix))

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def differences(seen: dict[str, Entry], present: dict[str, Entry]) -> tuple[Change, ...]:
    """The changes that turn `seen` into `present`: what is gone first, then what is new or newer, by revision. Pure."""
    gone = [Change(key=key, entry=None) for key in sorted(seen) if key not in present]
    fresh = [entry for key, entry in present.items() if key not in seen or seen[key].revision != entry.revision]
    return (*gone, *(Change(key=entry.key, entry=entry) for entry in sorted(fresh, key=lambda entry: entry.revision)))
