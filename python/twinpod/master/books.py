"""The books: what survives the master. One SQLite database (WAL, synchronous FULL) in the state folder; one writer,
held by a lock.

Promises. Segments are on disk when `store` returns, and a repeated or foreign one changes nothing. An iteration
commit is one transaction: the groups trained, the new version, the snapshot's name and the numbers stand together or
not at all. `resume` gives back the newest commit whose snapshot exists; what was committed after it is rolled back in
one transaction (design 8.4): its prompts are to be trained again, segments made by its versions leave the surviving
line, and their trajectories go on from what is left of them.

Life: `Books.open`, `begin_epoch`, `resume`, then writes; `close`. Methods block for a disk write: call them off the
event loop. Reading is in `books_read`, the tables and their constraints in `books_schema`.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from twinpod.errors import EnvironmentFault, StaleEpoch
from twinpod.master import books_read as read
from twinpod.master.books_file import FILE, Identity, connect, lock_folder, set_meta
from twinpod.master.books_rollback import RECOUNT_PROMPT, newest_snapshot, refuse_archived, roll_back, same_weights
from twinpod.records import codec
from twinpod.records.arrays import TokenIds
from twinpod.records.rollout import Group, GroupState, Prompt, Segment, Trajectory
from twinpod.records.run import IterationRecord, Progress

__all__ = ["FILE", "Books", "EvaluationAnswer", "Identity", "Resume", "Scored", "Stored"]

T = TypeVar("T")

MOST_IN_GROUP = 4096  # trajectories; their ids begin at the group's times this, whatever size other groups have
MOST_TRIES = 3  # groups that a prompt may have in one pass; then it is passed over


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Where a run goes on."""

    iteration: int  # last surviving commit; 0 at the beginning
    version: int  # weights after it; 0 when no version was ever published
    newest_version: int  # largest number ever used, given-up lines included; the next one must be larger
    snapshot: str  # folder; empty: begin with initial weights
    line: int
    rolled_back: int  # commits given up now


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What became of returned segments."""

    accepted: tuple[Segment, ...]
    repeats: int  # known already
    refused: int  # of an unknown or given-up version, of a closed group, or out of order


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The verdict on one terminal trajectory. `reward` None: no judge could be reached, `masked` says why."""

    trajectory_id: int
    reward: float | None
    correct: bool  # wholly right
    masked: str
    lost: str = ""  # masked because its judge was "late", or had "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationAnswer:
    """One greedy answer to a held-out prompt."""

    prompt_id: int
    tokens: TokenIds
    answer: str
    reward: float | None
    correct: bool
    masked: str


class Books:
    """The writer. Invariant: `epoch` in the file equals ours, or every write raises StaleEpoch."""

    def __init__(self, connection: sqlite3.Connection, folder: Path, lock: IO[str]) -> None:
        self.connection, self.folder, self._lock = connection, folder, lock
        self.epoch = int(read.meta(connection, "epoch", "0"))

    @classmethod
    def open(cls, folder: Path, identity: Identity) -> Books:
        """Open or create. InputError.

        Another job's folder or a newer schema. InUse: another master has it. EnvironmentFault: no room.
        """
        lock = lock_folder(folder)
        try:
            connection = connect(folder / FILE, identity)
        except sqlite3.Error as error:
            lock.close()
            raise EnvironmentFault(
                str(error), where=str(folder / FILE), mend="give the state folder room and a sound file system"
            ) from error
        except BaseException:
            lock.close()
            raise
        return cls(connection, folder, lock)

    def close(self) -> None:
        """Let go of the file and its lock; nothing is pending."""
        self.connection.close()
        self._lock.close()

    def begin_epoch(self, epoch: int) -> None:
        """Write under this job epoch from now on. StaleEpoch when the file has seen a newer one."""
        with self._transaction(check=False) as db:
            newest = int(read.meta(db, "epoch", "0"))
            if newest > epoch:
                raise StaleEpoch(
                    f"epoch {newest} has written here, this is epoch {epoch}", where=str(self.folder / FILE)
                )
            set_meta(db, "epoch", str(epoch))
        self.epoch = epoch

    def resume(self, exists: Callable[[str], bool]) -> Resume:
        """Roll back to the newest commit whose snapshot `exists` (see the module); InputError when none does."""
        with self._transaction() as db:
            commits = read.commits(db)
            iteration, snapshot = newest_snapshot(commits, exists)
            refuse_archived(db, iteration, str(self.folder / FILE))
            line = int(read.meta(db, "line", "1"))
            if lost := sum(row[0] > iteration for row in commits):
                line += 1
                set_meta(db, "line", str(line))
                roll_back(db, iteration)
            newest = read.newest_version(db)
            _count(db, "resumes", 1 if newest else 0)
            version = read.surviving_version(db)
        return Resume(
            iteration=iteration, version=version, newest_version=newest, snapshot=snapshot, line=line, rolled_back=lost
        )

    def keep_snapshot(self, iteration: int, snapshot: str) -> None:
        """A snapshot of an iteration that was committed without one."""
        with self._transaction() as db:
            db.execute(_KEEP_SNAPSHOT, (snapshot, iteration))

    def record_version(self, version: int, iteration: int, digest: str, layout: str = "") -> None:
        """A version that engines may answer with from now on. The same one may come again: see `same_weights`."""
        with self._transaction() as db:
            _count(db, "versions_not_compared", int(not same_weights(db, version, digest, layout)))
            set_meta(db, "weights_layout", layout)
            _insert_version(db, version, iteration, self.epoch, digest)

    def begin_groups(self, prompts: Sequence[tuple[Prompt, int]], size: int, iteration: int) -> tuple[Group, ...]:
        """New open groups, one a (prompt, pass), each with `size` trajectories; see `MOST_IN_GROUP` for ids."""
        groups = []
        with self._transaction() as db:
            fresh = 0
            for prompt, number in prompts:
                fresh += not db.execute(_BEGIN_AGAIN, (prompt.prompt_id, number)).rowcount
                db.execute(
                    "INSERT INTO prompts (prompt_id, text, answer, difficulty, tokens) VALUES (?, ?, ?, ?, ?)"
                    " ON CONFLICT DO NOTHING",
                    (prompt.prompt_id, prompt.text, prompt.answer, prompt.difficulty, prompt.tokens.tobytes()),
                )
                row = db.execute(
                    "INSERT INTO groups (prompt_id, pass, size, born, state) VALUES (?, ?, ?, ?, 'open')",
                    (prompt.prompt_id, number, size, iteration),
                )
                group_id = int(row.lastrowid or 0)
                ids = range(group_id * MOST_IN_GROUP, group_id * MOST_IN_GROUP + size)
                db.executemany(
                    "INSERT INTO trajectories (trajectory_id, group_id) VALUES (?, ?)", [(one, group_id) for one in ids]
                )
                blank = tuple(Trajectory(trajectory_id=one, group_id=group_id, segments=(), reward=None) for one in ids)
                groups.append(
                    Group(
                        group_id=group_id,
                        epoch=number,
                        prompt=prompt,
                        born=iteration,
                        state=GroupState.OPEN,
                        trajectories=blank,
                    )
                )
            set_meta(db, "opened", str(read.opened(db) + fresh))
        return tuple(groups)

    def store(self, segments: Iterable[Segment], iteration: int) -> Stored:
        """Take segments that came back. Idempotent by (trajectory, index)."""
        accepted: list[Segment] = []
        repeats = refused = 0
        with self._transaction() as db:
            for segment in segments:
                known, next_index, start = read.chain_end(db, segment)
                if segment.index < next_index:
                    repeats += 1
                elif not known or segment.index > next_index or not segment.tokens:
                    refused += 1
                else:
                    _insert_segment(db, segment, start, iteration)
                    accepted.append(segment)
            touched = {segment.trajectory_id for segment in accepted if segment.stop.terminal}
            db.executemany(_FINISH_GROUP, [(one,) for one in touched])
            _count(db, "segments_repeated", repeats)
            _count(db, "segments_refused", refused)
        return Stored(accepted=tuple(accepted), repeats=repeats, refused=refused)

    def score(self, verdicts: Sequence[Scored]) -> None:
        """Write verdicts on terminal trajectories."""
        with self._transaction() as db:
            rows = [(verdict.reward, verdict.correct, verdict.masked, verdict.trajectory_id) for verdict in verdicts]
            db.executemany(
                "UPDATE trajectories SET reward = ?1, correct = ?2, masked = ?3,"
                " outcome = CASE ?3 WHEN '' THEN 'scored' ELSE 'masked' END WHERE trajectory_id = ?4 AND terminal = 1",
                rows,
            )
            _count(db, "trajectories_masked", sum(bool(row[2]) for row in rows))
            for how, number in Counter(verdict.lost for verdict in verdicts if verdict.lost).items():
                _count(db, f"judges_{how}", number)

    def drop(self, group_ids: Sequence[int], reason: str) -> None:
        """Give groups up, counted as `groups_dropped_<reason>`.

        Their prompts are to be begun again in the same pass, until MOST_TRIES groups of one were given up.
        """
        with self._transaction() as db:
            for one in group_ids:
                row = db.execute(_DROP, (one,)).fetchone()
                if row is not None:
                    db.execute(_DROPPED, (one,))
                    db.execute(_TRY_AGAIN, (*row, one, MOST_TRIES))
            _count(db, f"groups_dropped_{reason}", len(group_ids))

    def write(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """`act` in one transaction."""
        with self._transaction() as db:
            return act(db)

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter."""
        if by:
            with self._transaction() as db:
                _count(db, name, by)

    def commit(self, record: IterationRecord, group_ids: Sequence[int], digest: str) -> None:
        """One iteration, in one transaction: groups trained, the version after it, its numbers."""
        with self._transaction() as db:
            for group_id in group_ids:
                (prompt_id, number) = db.execute(
                    "SELECT prompt_id, pass FROM groups WHERE group_id = ?", (group_id,)
                ).fetchone()
                db.execute(_INSERT_TRAINED, (prompt_id, number, group_id, record.iteration, record.line, group_id))
                db.execute("UPDATE groups SET state = 'trained' WHERE group_id = ?", (group_id,))
                db.execute(RECOUNT_PROMPT, (prompt_id,))
            _insert_version(db, record.version, record.iteration, self.epoch, digest)
            db.execute(_INSERT_ITERATION, (*read.iteration_row(record), read.meta(db, "settings", "")))

    def record_evaluation(self, iteration: int, answers: Iterable[EvaluationAnswer]) -> None:
        """Greedy answers to held-out prompts; those of an earlier attempt are replaced."""
        rows = [(iteration, a.prompt_id, a.tokens.tobytes(), a.answer, a.reward, a.correct, a.masked) for a in answers]
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def note(self, progress: Progress) -> None:
        """Where the run stands, and its state."""
        with self._transaction() as db:
            set_meta(db, "state", progress.state)
            set_meta(db, "progress", codec.dumps(progress))

    @contextmanager
    def _transaction(self, *, check: bool = True) -> Iterator[sqlite3.Connection]:
        db = self.connection
        try:
            db.execute("BEGIN IMMEDIATE")
            try:
                newest = int(read.meta(db, "epoch", "0"))
                if check and newest != self.epoch:
                    raise StaleEpoch(
                        f"epoch {newest} writes here now, this is epoch {self.epoch}", where=str(self.folder / FILE)
                    )
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise EnvironmentFault(
                str(error), where=str(self.folder / FILE), mend="give the state volume room; nothing was half-written"
            ) from error


_KEEP_SNAPSHOT = "UPDATE iterations SET snapshot = ? WHERE iteration = ? AND rolled_back = 0"
_FINISH_GROUP = """
UPDATE groups SET state = 'finished' WHERE state = 'open'
AND group_id = (SELECT group_id FROM trajectories WHERE trajectory_id = ?)
AND NOT EXISTS (SELECT 1 FROM trajectories t WHERE t.group_id = groups.group_id AND t.terminal = 0)
"""
_BEGIN_AGAIN = "UPDATE again SET waiting = 0 WHERE prompt_id = ? AND pass = ?"
_DROP = """
UPDATE groups SET state = 'dropped' WHERE group_id = ? AND state IN ('open', 'finished') RETURNING prompt_id, pass
"""
_DROPPED = "UPDATE trajectories SET outcome = 'dropped' WHERE group_id = ? AND outcome IS NULL"
_TRY_AGAIN = """
INSERT INTO again (prompt_id, pass, since, tries, waiting) VALUES (?, ?, ?, 1, 1)
ON CONFLICT DO UPDATE SET tries = tries + 1, waiting = tries + 1 < ?
"""
_INSERT_TRAINED = """
INSERT INTO trained (prompt_id, pass, group_id, iteration, line, tries, reward_sum, right_count)
SELECT ?, ?, ?, ?, ?, count(reward), coalesce(sum(reward), 0), coalesce(sum(correct), 0)
FROM trajectories WHERE group_id = ? AND reward IS NOT NULL
"""
_COLUMNS = ", ".join(read.ITERATION_COLUMNS)
_MARKS = ", ".join("?" * len(read.ITERATION_COLUMNS))
_INSERT_ITERATION = f"INSERT INTO iterations ({_COLUMNS}, settings) VALUES ({_MARKS}, ?)"  # noqa: S608  # names of ours


def _insert_segment(db: sqlite3.Connection, segment: Segment, start: int, iteration: int) -> None:
    db.execute(
        "INSERT INTO segments (trajectory_id, idx, start, count, version, iteration, pod, stop, kind, tokens, logps)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            segment.trajectory_id, segment.index, start, len(segment.tokens), segment.version, iteration, segment.pod,
            segment.stop.value, segment.kind.value, segment.tokens.tobytes(), segment.logps.tobytes(),
        ),
    )  # fmt: skip
    db.execute(
        "UPDATE trajectories SET stop = ?, terminal = ? WHERE trajectory_id = ?",
        (segment.stop.value, segment.stop.terminal, segment.trajectory_id),
    )


def _insert_version(db: sqlite3.Connection, version: int, iteration: int, epoch: int, digest: str) -> None:
    db.execute(
        "INSERT INTO versions (version, iteration, epoch, digest) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (version) DO UPDATE SET epoch = excluded.epoch, digest = excluded.digest",
        (version, iteration, epoch, digest),
    )


def _count(db: sqlite3.Connection, name: str, by: int) -> None:
    if by:
        db.execute(
            "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET count = count + excluded.count",
            (name, by),
        )
