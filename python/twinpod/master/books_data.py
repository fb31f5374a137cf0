"""The data set in the books: a resumed run goes on with the prompts that it began with, and with what was appended.

A digest an item is kept, in the source's order. A start compares: an item that is another one, or missing, is refused
by its line; items after the last one known are welcome, and the books say from which draw on they are there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twinpod.errors import InputError
from twinpod.master import books_read as read
from twinpod.master.books import Books
from twinpod.sampling.items import DIGEST_BYTES, Dataset, digest_of
from twinpod.sampling.uniform import Growth, Uniform

__all__ = ["Known", "begun_with", "known", "take", "uniform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Items that came together: at the first start, or at a later one."""

    first: int  # place of the first of them
    count: int
    taken: int  # groups that had been begun when they came


def known(db: sqlite3.Connection) -> tuple[Known, ...]:
    """What the run has begun with and got since; empty before its first start."""
    rows = db.execute(f"SELECT first, length(digests) / {DIGEST_BYTES}, taken FROM data ORDER BY first")  # noqa: S608
    return tuple(Known(first=first, count=count, taken=taken) for first, count, taken in rows)


def begun_with(db: sqlite3.Connection) -> int | None:
    """Items that the run began with; None before its first start."""
    there = known(db)
    return there[0].count if there else None


def take(books: Books, dataset: Dataset) -> tuple[Known, ...]:
    """The data set is the run's: what it began with, or that with more at its end. InputError names the line if not."""
    now = b"".join(map(digest_of, dataset.items))

    def act(db: sqlite3.Connection) -> tuple[Known, ...]:
        before = b"".join(row[0] for row in db.execute("SELECT digests FROM data ORDER BY first"))
        _refuse_change(before, now, dataset)
        if more := now[len(before) :]:
            place = len(before) // DIGEST_BYTES
            db.execute("INSERT INTO data VALUES (?, ?, ?)", (place, more, read.opened(db) if place else 0))
        return known(db)

    return books.write(act)


def uniform(dataset: Dataset, data: Sequence[Known]) -> Uniform:
    """The sampling policy over the run's draws. Pure."""
    steps: list[Growth] = []
    for part in data:
        size = min(part.first + part.count - dataset.held_out, dataset.size or part.first + part.count)
        if not steps or size > steps[-1].size:  # dataset.size may leave out what came
            steps.append(Growth(taken=part.taken, size=size))
    return Uniform(size=steps[0].size, seed=dataset.seed, grown=tuple(steps[1:]))


def _refuse_change(before: bytes, now: bytes, dataset: Dataset) -> None:
    length = min(len(before), len(now))
    old, new = (np.frombuffer(one[:length], np.uint64).reshape(-1, 2) for one in (before, now))
    mend = "put back what was there, or begin a new run; lines may be added at the end only"
    if (differs := np.flatnonzero((old != new).any(axis=1))).size:
        place = int(differs[0])
        what = "prompt" if old[place, 0] != new[place, 0] else "answer or difficulty"
        raise InputError(
            f"has another {what} than when the run began ({differs.size} of {length // DIGEST_BYTES} items differ)",
            where=dataset.items[place].where or f"{dataset.name}, item {place}",
            mend=mend,
        )
    if len(now) < len(before):
        last = dataset.items[-1].where if dataset.items else ""
        raise InputError(
            f"has {len(now) // DIGEST_BYTES} distinct prompts, the run has begun with {len(before) // DIGEST_BYTES}:"
            f" those after {last or 'its last one'} are missing",
            where=dataset.name,
            mend=mend,
        )
