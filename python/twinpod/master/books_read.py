"""Reading the books: small functions over a connection, for the writer, the conductor and `inspect`.

They change nothing.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from twinpod.errors import InputError
from twinpod.master.books_schema import SCHEMA_VERSION
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.rollout import Group, GroupState, Prompt, Segment, SegmentKind, Stop, Trajectory
from twinpod.records.run import EvaluationRecord, IterationRecord, NamedCount, PhaseSeconds
from twinpod.replay.policy import Held, Scored

ITERATION_COLUMNS = (
    "iteration", "line", "epoch", "version", "snapshot", "groups", "samples", "reward", "right", "length",
    "tokens_generated", "tokens_trained", "loss", "weights_gap", "stats",
    "generate_s", "train_s", "weights_s", "switch_s", "snapshot_s", "other_s", "committed_at", "rolled_back",
)  # fmt: skip


def open_read_only(file: Path) -> sqlite3.Connection:
    """A connection that cannot write; InputError when there are no books that this release can read."""
    if not file.is_file():
        raise InputError(
            "there are no books of a run", where=str(file), mend="name the folder of a run (it has state/books.sqlite)"
        )
    try:
        db = sqlite3.connect(
            f"file:{file}?mode=ro", uri=True, isolation_level=None, timeout=10, check_same_thread=False
        )
        (found,) = db.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error as error:
        raise InputError(f"cannot be read: {error}", where=str(file)) from error
    if found != SCHEMA_VERSION:
        raise InputError(
            f"has schema {found}, this Twinpod knows {SCHEMA_VERSION}",
            where=str(file),
            mend="use the Twinpod that wrote it",
        )
    return db


def meta(db: sqlite3.Connection, key: str, default: str) -> str:
    """One value of the table meta."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return str(row[0]) if row else default


def begun(db: sqlite3.Connection) -> bool:
    """Whether the run has made anything: weights were published, or prompts begun."""
    return bool(db.execute("SELECT EXISTS (SELECT 1 FROM versions) OR EXISTS (SELECT 1 FROM groups)").fetchone()[0])


def newest_version(db: sqlite3.Connection) -> int:
    """The largest version number ever recorded, on any line; 0 without."""
    return int(db.execute("SELECT coalesce(max(version), 0) FROM versions").fetchone()[0])


def commits(db: sqlite3.Connection) -> list[tuple[int, str]]:
    """(iteration, folder of its snapshot or "") of the surviving line, newest first."""
    return db.execute(
        "SELECT iteration, snapshot FROM iterations WHERE rolled_back = 0 ORDER BY iteration DESC"
    ).fetchall()


def digest_of(db: sqlite3.Connection, version: int) -> str:
    """Digest of a version of the surviving line; empty when it has none."""
    row = db.execute("SELECT digest FROM versions WHERE version = ? AND rolled_back = 0", (version,)).fetchone()
    return str(row[0]) if row else ""


def surviving_version(db: sqlite3.Connection) -> int:
    """The newest version of the surviving line; 0 before the first one."""
    return int(db.execute("SELECT coalesce(max(version), 0) FROM versions WHERE rolled_back = 0").fetchone()[0])


def chain_end(db: sqlite3.Connection, segment: Segment) -> tuple[bool, int, int]:
    """For a returned segment: may it be stored at all, the index that its trajectory wants next, the tokens it has."""
    row = db.execute(
        "SELECT t.terminal, g.state, EXISTS (SELECT 1 FROM versions WHERE version = ? AND rolled_back = 0)"
        " FROM trajectories t JOIN groups g USING (group_id) WHERE t.trajectory_id = ?",
        (segment.version, segment.trajectory_id),
    ).fetchone()
    if row is None:
        return False, 0, 0
    terminal, state, surviving = row
    last = db.execute(
        "SELECT idx + 1, start + count FROM segments WHERE trajectory_id = ? AND rolled_back = 0"
        " ORDER BY idx DESC LIMIT 1",
        (segment.trajectory_id,),
    ).fetchone()
    index, tokens = last or (0, 0)
    return bool(state == "open" and not terminal and surviving), int(index), int(tokens)


def groups_in(db: sqlite3.Connection, states: Sequence[GroupState]) -> tuple[Group, ...]:
    """All groups in these states with their surviving segments, oldest first."""
    marks = ", ".join("?" * len(states))
    waiting = set(states) <= {GroupState.OPEN, GroupState.FINISHED}
    indexed = "state IN ('open', 'finished') AND" if waiting else ""  # said so that SQLite sees its partial index
    rows = db.execute(
        f"SELECT group_id FROM groups WHERE {indexed} state IN ({marks}) ORDER BY born, group_id",  # noqa: S608  # marks and names of ours
        [state.value for state in states],
    ).fetchall()
    return load_groups(db, [row[0] for row in rows])


def groups_of(db: sqlite3.Connection, trajectory_ids: Iterable[int]) -> tuple[int, ...]:
    """The groups of some trajectories, each once."""
    ask = "SELECT group_id FROM trajectories WHERE trajectory_id = ?"
    return tuple(dict.fromkeys(db.execute(ask, (one,)).fetchone()[0] for one in trajectory_ids))


def load_groups(db: sqlite3.Connection, group_ids: Iterable[int]) -> tuple[Group, ...]:
    """Groups by id, in the order given."""
    return tuple(_load_group(db, group_id) for group_id in group_ids)


def _load_group(db: sqlite3.Connection, group_id: int) -> Group:
    number, born, state, *prompt = db.execute(
        "SELECT g.pass, g.born, g.state, p.prompt_id, p.text, p.answer, p.difficulty, p.tokens"
        " FROM groups g JOIN prompts p USING (prompt_id) WHERE g.group_id = ?",
        (group_id,),
    ).fetchone()
    chains: dict[int, list[Segment]] = {}
    for row in db.execute(
        "SELECT s.trajectory_id, s.idx, s.version, s.pod, s.stop, s.tokens, s.logps, s.kind"
        " FROM segments s JOIN trajectories t USING (trajectory_id)"
        " WHERE t.group_id = ? AND s.rolled_back = 0 ORDER BY s.trajectory_id, s.idx",
        (group_id,),
    ):
        chains.setdefault(row[0], []).append(_segment(row))
    trajectories = tuple(
        Trajectory(trajectory_id=one, group_id=group_id, segments=tuple(chains.get(one, ())), reward=reward)
        for one, reward in db.execute(
            "SELECT trajectory_id, reward FROM trajectories WHERE group_id = ? ORDER BY trajectory_id", (group_id,)
        )
    )
    return Group(
        group_id=group_id,
        epoch=number,
        prompt=prompt_of(prompt),
        born=born,
        state=GroupState(state),
        trajectories=trajectories,
    )


def scored(db: sqlite3.Connection, group_ids: Iterable[int]) -> tuple[Scored, ...]:
    """The scored trajectories of some groups, in the order given, without their tokens."""
    found = []
    for group_id in group_ids:
        (prompt,) = db.execute(
            "SELECT length(p.tokens) / 4 FROM groups g JOIN prompts p USING (prompt_id) WHERE g.group_id = ?",
            (group_id,),
        ).fetchone()
        rows = db.execute(
            "SELECT t.trajectory_id, t.reward, sum(s.count), sum(s.count * (s.kind = 'generated'))"
            " FROM trajectories t CROSS JOIN segments s ON s.trajectory_id = t.trajectory_id AND s.rolled_back = 0"
            " WHERE t.group_id = ? AND t.reward IS NOT NULL GROUP BY t.trajectory_id ORDER BY t.trajectory_id",
            (group_id,),
        )
        found += [
            Scored(trajectory_id=one, group_id=group_id, tokens=prompt + tokens, generated=generated, reward=reward)
            for one, reward, tokens, generated in rows
        ]
    return tuple(found)


def chain(db: sqlite3.Connection, trajectory_id: int) -> tuple[TokenIds, tuple[tuple[int, TokenIds, LogProbs], ...]]:
    """A trajectory's prompt, and (version, tokens, log-probs) of its segments: 0 and no log-probs when given."""
    where = f"trajectory {trajectory_id}"
    (prompt,) = db.execute(
        "SELECT p.tokens FROM trajectories t JOIN groups g USING (group_id) JOIN prompts p USING (prompt_id)"
        " WHERE t.trajectory_id = ?",
        (trajectory_id,),
    ).fetchone()
    rows = db.execute(
        "SELECT CASE kind WHEN 'given' THEN 0 ELSE version END, tokens, logps FROM segments"
        " WHERE trajectory_id = ? AND rolled_back = 0 ORDER BY idx",
        (trajectory_id,),
    )
    segments = [
        (version, TokenIds.frombytes(tokens, where), LogProbs.frombytes(logps, where))
        for version, tokens, logps in rows
    ]
    return TokenIds.frombytes(prompt, where), tuple(segments)


def prompt_of(row: Sequence[Any]) -> Prompt:
    """From (prompt_id, text, answer, difficulty, tokens)."""
    return Prompt(
        prompt_id=row[0],
        text=row[1],
        answer=row[2],
        difficulty=row[3],
        tokens=TokenIds.frombytes(row[4], f"prompt {row[0]}"),
    )


def _segment(row: Sequence[Any]) -> Segment:
    return Segment(
        trajectory_id=row[0],
        index=row[1],
        version=row[2],
        pod=row[3],
        stop=Stop(row[4]),
        tokens=TokenIds.frombytes(row[5], f"segment {row[1]} of trajectory {row[0]}"),
        logps=LogProbs.frombytes(row[6], f"segment {row[1]} of trajectory {row[0]}"),
        kind=SegmentKind(row[7]),
    )


def spent_in(db: sqlite3.Connection, iteration: int) -> dict[int, int]:
    """Tokens that each trajectory has generated in an iteration that is not committed yet."""
    return dict(
        db.execute(
            "SELECT trajectory_id, sum(count) FROM segments WHERE iteration = ? AND rolled_back = 0"
            " GROUP BY trajectory_id",
            (iteration,),
        )
    )


def generated_in(db: sqlite3.Connection, iteration: int) -> int:
    """Tokens generated in an iteration, on the surviving line."""
    row = db.execute(
        "SELECT coalesce(sum(count), 0) FROM segments WHERE iteration = ? AND rolled_back = 0", (iteration,)
    ).fetchone()
    return int(row[0])


def held(db: sqlite3.Connection) -> tuple[Held, ...]:
    """Every group that waits to be trained, open ones included, without its tokens.

    A trajectory's oldest segment is its first: iterations only grow along a chain.
    """
    rows = db.execute(
        "SELECT g.group_id, g.born, g.size, coalesce("
        " (SELECT min(s.iteration) FROM trajectories t"
        "  JOIN segments s ON s.trajectory_id = t.trajectory_id AND s.idx = 0 AND s.rolled_back = 0"
        "  WHERE t.group_id = g.group_id), g.born),"
        " (SELECT count(*) FROM trajectories t"
        "  WHERE t.group_id = g.group_id AND t.terminal = 1 AND t.reward IS NOT NULL),"
        " (SELECT count(*) FROM trajectories t WHERE t.group_id = g.group_id AND t.terminal = 1 AND t.masked != '')"
        " FROM groups g WHERE g.state IN ('open', 'finished') ORDER BY g.born, g.group_id"
    )
    return tuple(
        Held(group_id=group_id, born=born, oldest=oldest, scored=scored, masked=masked, size=size)
        for group_id, born, size, oldest, scored, masked in rows
    )


def unscored(db: sqlite3.Connection) -> tuple[int, ...]:
    """Terminal trajectories of waiting groups without a verdict: a master died between storing and scoring them."""
    rows = db.execute(
        "SELECT t.trajectory_id FROM groups g CROSS JOIN trajectories t USING (group_id)"  # the few groups first
        " WHERE t.terminal = 1 AND t.reward IS NULL AND t.masked = '' AND g.state IN ('open', 'finished')"
        " ORDER BY t.trajectory_id"
    )
    return tuple(row[0] for row in rows)


def opened(db: sqlite3.Connection) -> int:
    """How many (prompt, pass) pairs were ever begun: the sampler's place."""
    return int(meta(db, "opened", "0"))


def given_up(db: sqlite3.Connection, most: int) -> tuple[tuple[int, int], ...]:
    """(prompt, pass) pairs to be begun again, at most `most`, oldest first: see `Books.drop`."""
    return tuple(
        db.execute("SELECT prompt_id, pass FROM again WHERE waiting = 1 ORDER BY since LIMIT ?", (most,)).fetchall()
    )


def histories(db: sqlite3.Connection) -> tuple[tuple[int, float, int, int], ...]:
    """(prompt, difficulty, finished trajectories, right ones) of every prompt trained so far, by prompt."""
    return tuple(
        db.execute("SELECT prompt_id, difficulty, tries, right_count FROM prompts WHERE tries > 0 ORDER BY prompt_id")
    )


def right_share(db: sqlite3.Connection, group_ids: Sequence[int]) -> float:
    """Share of the groups' scored trajectories that are wholly right; nan without any."""
    marks = ", ".join("?" * len(group_ids))
    row = db.execute(
        f"SELECT avg(correct) FROM trajectories WHERE reward IS NOT NULL AND group_id IN ({marks})",  # noqa: S608
        list(group_ids),
    ).fetchone()
    return math.nan if row[0] is None else float(row[0])


def evaluations(db: sqlite3.Connection) -> tuple[EvaluationRecord, ...]:
    """Evaluations on held-out prompts, by iteration."""
    rows = db.execute(
        "SELECT iteration, count(*), avg(reward), avg(CASE WHEN masked = '' THEN correct END)"
        " FROM evaluations GROUP BY iteration ORDER BY iteration"
    )
    return tuple(
        EvaluationRecord(
            iteration=iteration,
            prompts=prompts,
            reward=math.nan if reward is None else reward,
            right=math.nan if right is None else right,
        )
        for iteration, prompts, reward, right in rows
    )


def counters(db: sqlite3.Connection) -> tuple[NamedCount, ...]:
    """What happened, by name."""
    return tuple(
        NamedCount(name=name, count=count)
        for name, count in db.execute("SELECT name, count FROM counters ORDER BY name")
    )


def iterations(db: sqlite3.Connection, *, rolled_back: bool = False) -> tuple[IterationRecord, ...]:
    """Commits in order; those of given-up lines only when asked for."""
    only = "" if rolled_back else "WHERE rolled_back = 0"
    rows = db.execute(f"SELECT {', '.join(ITERATION_COLUMNS)} FROM iterations {only} ORDER BY id")  # noqa: S608  # marks and names of ours
    return tuple(_iteration(row) for row in rows)


def iteration_row(record: IterationRecord) -> tuple[Any, ...]:
    """The record in the order of `ITERATION_COLUMNS`; nan becomes NULL by SQLite itself."""
    r, s = record, record.seconds
    return (
        r.iteration, r.line, r.epoch, r.version, r.snapshot, r.groups, r.samples, r.reward, r.right, r.length,
        r.tokens_generated, r.tokens_trained, r.loss, r.weights_gap, r.stats,
        s.generate, s.train, s.weights, s.switch, s.snapshot, s.other, r.committed_at, int(r.rolled_back),
    )  # fmt: skip


def _iteration(row: Sequence[Any]) -> IterationRecord:
    value = dict(zip(ITERATION_COLUMNS, row, strict=True))
    for name in ("reward", "right", "length", "loss", "weights_gap"):
        value[name] = math.nan if value[name] is None else value[name]
    seconds = PhaseSeconds(
        **{name: value.pop(f"{name}_s") for name in ("generate", "train", "weights", "switch", "snapshot", "other")}
    )
    return IterationRecord(**value | {"seconds": seconds, "rolled_back": bool(value["rolled_back"])})
