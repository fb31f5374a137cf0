"""When trajectories leave the books for their Parquet files (`archive`).

Theory of operation. After a commit everything that no resume can need any more is moved, beside the run, iteration by
iteration:

1. the books say that no resume will go back behind the iteration: from then on its groups cannot change;
2. the file is written under another name, made durable and renamed;
3. the groups that the file holds are removed from the books, some a transaction, and counted in `archived`, so that the
   numbers of a run are true at every moment.

A master killed anywhere goes on with the same step: a file that is there is not written again, and what it holds is
what is removed. A failure ends the run at its next commit, as the books would grow for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Event

from twinpod.master import archive
from twinpod.master import books_read as read
from twinpod.master.books import FILE, Books
from twinpod.master.books_file import set_meta
from twinpod.master.sinks import AsyncBooks

A_TIME = 4  # groups that one transaction removes: others write to the books meanwhile
THROUGH, DONE = "archive_through", "archive_done"  # iterations that no resume goes back behind; that are moved


def through(now: int, keep: int, snapshots: Sequence[int]) -> int:
    """The newest iteration to move after the commit of `now`; `snapshots`: iterations of the commits that have one.

    A resume may go back to the snapshot before the newest. Pure.
    """
    return max(0, min(now - keep, sorted(snapshots)[-2] if len(snapshots) > 1 else 0))


class Archive:
    """Life: `start` after every commit, `close` at the end. One move at a time."""

    def __init__(self, async_books: AsyncBooks, folder: Path, keep: int) -> None:
        """`folder`: the snapshots volume. `keep`: iterations that stay in the books."""
        self._books, self._folder, self._keep = async_books, folder, keep
        self._moving: asyncio.Task[None] | None = None
        self._leaving = Event()

    def start(self, now: int, snapshots: Sequence[int]) -> None:
        """Move what is old after the commit of `now`, unless an earlier move goes on. Raises what that one raised."""
        if self._moving is not None:
            if not self._moving.done():
                return
            self._moving.result()
            self._moving = None
        if last := through(now, self._keep, snapshots):
            self._moving = asyncio.create_task(self._move(last))

    async def settle(self) -> None:
        """Wait for the move under way; raises what it raised."""
        if self._moving is not None:
            await self._moving

    async def close(self) -> None:
        """Leave a move where it stands; the next master goes on with it."""
        self._leaving.set()  # a thread cannot be cancelled
        if self._moving is not None:
            self._moving.cancel()
            await asyncio.gather(self._moving, return_exceptions=True)

    async def _move(self, last: int) -> None:
        for iteration in range(await self._books.do(done) + 1, last + 1):
            await self._books.do(partial(begin, iteration=iteration))
            file = archive.file_of(self._folder, iteration)
            await asyncio.to_thread(write_missing, self._books.books.folder / FILE, file, iteration, self._leaving)
            run = await self._books.do(lambda books: read.meta(books.connection, "run", ""))
            groups = await asyncio.to_thread(archive.group_ids, file, run)
            for first in range(0, len(groups), A_TIME):
                await self._books.do(partial(remove, groups=groups[first : first + A_TIME]))
            await self._books.do(partial(end, iteration=iteration))


def done(books: Books) -> int:
    """The newest iteration that was moved."""
    return int(read.meta(books.connection, DONE, "0"))


def begin(books: Books, iteration: int) -> None:
    """No resume goes back behind the iteration from now on."""
    books.write(lambda db: set_meta(db, THROUGH, str(iteration)))


def end(books: Books, iteration: int) -> None:
    """The iteration is moved."""
    books.write(lambda db: set_meta(db, DONE, str(iteration)))


class Left(Exception):  # no error: nobody waits for the file any more
    """The master leaves while a file is being written."""


def write_missing(database: Path, file: Path, iteration: int, leaving: Event | None = None) -> None:
    """The file of an iteration, when it is not there and there is something to put into it. Left: only a part of it
    was written, under another name."""

    def rows(db: sqlite3.Connection, groups: Sequence[int]) -> Iterator[archive.Row]:
        for row in archive.load_rows(db, groups):
            if leaving is not None and leaving.is_set():
                raise Left
            yield row

    with contextlib.closing(read.open_read_only(database)) as db:
        groups = () if file.exists() else movable(db, iteration)
        if groups:
            archive.write(file, rows(db, groups), read.meta(db, "run", ""))


def movable(db: sqlite3.Connection, iteration: int) -> tuple[int, ...]:
    """Groups trained in the iteration, and those given up that were born by then; only those still in the books."""
    found = {row[0] for statement in _MOVABLE for row in db.execute(statement, (iteration,))}
    return tuple(sorted(found))


def remove(books: Books, groups: Sequence[int]) -> None:
    """Groups that stand in a file leave the books, counted. Those that have left before count for nothing."""
    ids = json.dumps(groups)
    books.write(lambda db: [db.execute(statement, (ids,)) for statement in (*_COUNT, *_REMOVE)])


_MOVABLE = (
    """
SELECT g.group_id FROM trained t CROSS JOIN groups g USING (group_id) WHERE t.iteration = ? AND t.rolled_back = 0
""",
    "SELECT group_id FROM groups WHERE state = 'dropped' AND born <= ?",
)
_COUNT = (
    """
INSERT INTO archived SELECT 'group', state, count(*) FROM groups
WHERE group_id IN (SELECT value FROM json_each(?)) GROUP BY state
ON CONFLICT DO UPDATE SET count = count + excluded.count
""",
    """
INSERT INTO archived SELECT 'trajectory', state, count(*) FROM trajectory_states
WHERE group_id IN (SELECT value FROM json_each(?)) GROUP BY state
ON CONFLICT DO UPDATE SET count = count + excluded.count
""",
    """
INSERT INTO archived SELECT 'versions', versions, count(*) FROM (
    SELECT count(DISTINCT s.version) AS versions FROM json_each(?) AS leaving
    CROSS JOIN trajectories t ON t.group_id = leaving.value CROSS JOIN segments s USING (trajectory_id)
    WHERE s.rolled_back = 0 GROUP BY t.trajectory_id
) WHERE true GROUP BY versions
ON CONFLICT DO UPDATE SET count = count + excluded.count
""",
    """
INSERT INTO archived SELECT 'broken', '', n FROM (SELECT count(*) AS n FROM (
    SELECT 1 FROM json_each(?) AS leaving
    CROSS JOIN trajectories t ON t.group_id = leaving.value CROSS JOIN segments s USING (trajectory_id)
    WHERE s.rolled_back = 0 GROUP BY t.trajectory_id
    HAVING min(idx) != 0 OR max(idx) != count(*) - 1 OR min(start) != 0 OR max(start + count) != sum(count)
)) WHERE n > 0
ON CONFLICT DO UPDATE SET count = count + excluded.count
""",
    """
INSERT INTO archived_segments SELECT s.iteration, s.pod, s.version, count(*), sum(s.count)
FROM json_each(?) AS leaving
CROSS JOIN trajectories t ON t.group_id = leaving.value CROSS JOIN segments s USING (trajectory_id)
WHERE s.rolled_back = 0 GROUP BY 1, 2, 3
ON CONFLICT DO UPDATE SET segments = segments + excluded.segments, tokens = tokens + excluded.tokens
""",
)
_REMOVE = (
    """
DELETE FROM segments WHERE trajectory_id IN (
    SELECT trajectory_id FROM trajectories WHERE group_id IN (SELECT value FROM json_each(?))
)
""",
    """
DELETE FROM again WHERE (prompt_id, pass) IN (
    SELECT prompt_id, pass FROM groups WHERE group_id IN (SELECT value FROM json_each(?)) AND state = 'trained'
)
""",
    "DELETE FROM trajectories WHERE group_id IN (SELECT value FROM json_each(?))",
    "DELETE FROM groups WHERE group_id IN (SELECT value FROM json_each(?))",
)
