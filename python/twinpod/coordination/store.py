"""The port to etcd: five calls, compare-and-swap, leases, a watch that heals itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from twinpod.errors import InputError

VALUE_LIMIT = 100_000  # bytes; etcd is for words, weights travel elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A key with its value. `revision` is the store's modification revision, what `put(expect=)` compares with."""

    key: str
    value: str
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a watch saw: `entry` is None when the key is gone (deleted, or its lease ran out)."""

    key: str
    entry: Entry | None


class Store(Protocol):
    """Keys of one cluster. Every call raises `Unreachable` (retryable) when no member answers in time."""

    async def get(self, key: str) -> Entry | None:
        """The entry, linearizably read, or None."""
        ...

    async def list(self, prefix: str) -> tuple[Entry, ...]:
        """All entries whose keys begin with `prefix`, by key."""
        ...

    async def put(self, key: str, value: str, *, expect: int | None = None, lease_s: float | None = None) -> int:
        """Write; returns the new revision.

        `expect`: write only if the key has this revision (0: does not exist), else `Conflict`. `lease_s`: the key
        goes by itself this many seconds after its last put. After `Unreachable` it is unknown whether a put happened:
        read before swapping again.
        """
        ...

    async def delete(self, key: str) -> bool:
        """Remove; says whether the key was there."""
        ...

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """What is there now, key by key, then every change, without end.

        After a lost connection it reads anew and yields what differs, so that the last value seen of each key is
        always the true one in the end; values that were overwritten meanwhile are skipped.
        """
        ...


def checked(key: str, value: str) -> bytes:
    """The value as bytes; InputError when it is no small value."""
    data = value.encode()
    if len(data) > VALUE_LIMIT:
        raise InputError(
            f"a value of {len(data)} bytes does not belong into etcd; the limit is {VALUE_LIMIT}", where=key
        )
    return data
