"""Reads a running or finished run from its database alone, over a connection that cannot write."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from twinpod.master import books_read as read
from twinpod.master import books_settings
from twinpod.master.books import FILE
from twinpod.records import codec
from twinpod.records.run import (
    IterationRecord,
    NamedCount,
    PhaseSeconds,
    PodSegments,
    Progress,
    RunReport,
    VersionRecord,
)

LAST = 5


def inspect(folder: Path) -> RunReport:
    """The report of a run. `folder`.

    The run's own (with `state/`) or the state folder. InputError when it has no books.
    """
    file = folder / "state" / FILE if (folder / "state" / FILE).exists() else folder / FILE
    with contextlib.closing(read.open_read_only(file)) as db:
        db.execute("BEGIN")  # one moment for all numbers
        return report(db)


def to_json(run: RunReport) -> str:
    """The report as JSON; numbers that are unknown are null."""
    return json.dumps(_null_for_nan(codec.plain(run)), indent=2)


def from_json(text: str) -> RunReport:
    """What `to_json` wrote, for whoever got it from elsewhere; ProtocolError when it is something else."""
    return codec.loads(RunReport, json.dumps(_nan_for_null(RunReport, json.loads(text))))


def _nan_for_null(kind: Any, value: Any) -> Any:
    """Null is nan where a record has a number, and nothing else anywhere."""
    if value is None and kind is float:
        return math.nan
    arms = [arm for arm in get_args(kind) if arm not in (type(None), Ellipsis)]
    if isinstance(value, list) and arms:
        return [_nan_for_null(arms[0], item) for item in value]
    inner = kind if is_dataclass(kind) else next(iter(arms), None)
    if isinstance(value, dict) and is_dataclass(inner):
        hints = get_type_hints(inner)
        return {key: _nan_for_null(hints.get(key), item) for key, item in value.items()}
    return value


def report(db: sqlite3.Connection) -> RunReport:
    """All numbers, from one connection."""
    done = read.iterations(db)
    progress = read.meta(db, "progress", "")
    return RunReport(
        job=read.meta(db, "job", ""),
        state=read.meta(db, "state", "unknown"),
        epoch=int(read.meta(db, "epoch", "0")),
        line=int(read.meta(db, "line", "1")),
        iterations_committed=len(done),
        iterations_rolled_back=_number(db, "SELECT count(*) FROM iterations WHERE rolled_back = 1"),
        resumes=_number(db, "SELECT coalesce(sum(count), 0) FROM counters WHERE name = 'resumes'"),
        reward_last_5=_last(done, [one.reward for one in done]),
        right_last_5=_last(done, [one.right for one in done]),
        trajectories=_counts(db, _TRAJECTORIES),
        groups=_counts(db, _GROUPS),
        prompts_trained=_number(db, "SELECT count(DISTINCT prompt_id) FROM trained WHERE rolled_back = 0"),
        prompts_by_times_trained=_counts(db, _TIMES_TRAINED),
        trained_twice_in_a_pass=_number(db, _TRAINED_TWICE),
        segments=_number(db, "SELECT coalesce(sum(segments), 0) FROM all_segments"),
        tokens=_number(db, "SELECT coalesce(sum(tokens), 0) FROM all_segments"),
        trajectories_archived=_number(db, _ARCHIVED),
        pods=_counts(db, "SELECT pod, sum(segments) FROM all_segments GROUP BY pod ORDER BY pod"),
        pods_by_iteration=_by_iteration(db),
        trajectories_spanning_versions=_number(db, _SPANNING),
        trajectories_by_versions=_counts(db, _BY_VERSIONS),
        duplicate_tokens=_number(db, _DUPLICATE_TOKENS),
        chains_broken=_number(db, _CHAINS_BROKEN),
        versions=_versions(db),
        counters=_counts(db, "SELECT name, count FROM counters ORDER BY name"),
        seconds=_sum_seconds(done),
        settings_changes=books_settings.changes(db),
        iterations=done,
        evaluations=read.evaluations(db),
        progress=codec.loads(Progress, progress) if progress else None,
    )


_TRAJECTORIES = """
SELECT state, sum(n) FROM (
    SELECT state, count(*) AS n FROM trajectory_states GROUP BY 1
    UNION ALL SELECT name, count FROM archived WHERE kind = 'trajectory'
) GROUP BY 1 ORDER BY 1
"""
_GROUPS = """
SELECT state, sum(n) FROM (
    SELECT state, count(*) AS n FROM groups GROUP BY 1
    UNION ALL SELECT name, count FROM archived WHERE kind = 'group'
) GROUP BY 1 ORDER BY 1
"""
_ARCHIVED = "SELECT coalesce(sum(count), 0) FROM archived WHERE kind = 'trajectory'"
_TIMES_TRAINED = """
SELECT times, count(*) FROM (SELECT count(*) AS times FROM trained WHERE rolled_back = 0 GROUP BY prompt_id)
GROUP BY times ORDER BY times
"""
_TRAINED_TWICE = """
SELECT count(*) FROM (SELECT 1 FROM trained WHERE rolled_back = 0 GROUP BY prompt_id, pass HAVING count(*) > 1)
"""
_SPANNING = """
SELECT (SELECT count(*) FROM chains WHERE versions >= 2)
    + (SELECT coalesce(sum(count), 0) FROM archived WHERE kind = 'versions' AND name != '1')
"""
_BY_VERSIONS = """
SELECT versions, sum(n) FROM (
    SELECT versions, count(*) AS n FROM chains GROUP BY 1
    UNION ALL SELECT CAST(name AS INTEGER), count FROM archived WHERE kind = 'versions'
) GROUP BY 1 ORDER BY 1
"""
# Counted anew from the segments' own places, not taken from the constraints that should make it 0.
_DUPLICATE_TOKENS = """
SELECT coalesce(sum(max(0, min(a.start + a.count, b.start + b.count) - max(a.start, b.start))), 0)
FROM segments a JOIN segments b ON a.trajectory_id = b.trajectory_id AND a.segment_id < b.segment_id
WHERE a.rolled_back = 0 AND b.rolled_back = 0
"""
_CHAINS_BROKEN = """
SELECT (SELECT count(*) FROM chains WHERE broken)
    + (SELECT coalesce(sum(count), 0) FROM archived WHERE kind = 'broken')
"""


def _versions(db: sqlite3.Connection) -> tuple[VersionRecord, ...]:
    rows = db.execute(
        "SELECT v.version, v.iteration, v.epoch, v.digest, v.rolled_back, coalesce(sum(s.segments), 0),"
        " coalesce(sum(s.tokens), 0) FROM versions v LEFT JOIN all_segments s USING (version)"
        " GROUP BY v.version ORDER BY v.version"
    )
    return tuple(
        VersionRecord(
            version=version,
            iteration=iteration,
            epoch=epoch,
            digest=digest,
            rolled_back=bool(gone),
            segments=segments,
            tokens=tokens,
        )
        for version, iteration, epoch, digest, gone, segments, tokens in rows
    )


def _by_iteration(db: sqlite3.Connection) -> tuple[PodSegments, ...]:
    rows = db.execute(
        "SELECT iteration, pod, version, sum(segments), sum(tokens) FROM all_segments GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    )
    return tuple(
        PodSegments(iteration=iteration, pod=pod, version=version, segments=segments, tokens=tokens)
        for iteration, pod, version, segments, tokens in rows
    )


def _counts(db: sqlite3.Connection, query: str) -> tuple[NamedCount, ...]:
    return tuple(NamedCount(name=str(name), count=int(count)) for name, count in db.execute(query))


def _number(db: sqlite3.Connection, query: str) -> int:
    return int(db.execute(query).fetchone()[0])


def _last(done: Sequence[IterationRecord], values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)][-LAST:]
    return sum(known) / len(known) if known else math.nan


def _sum_seconds(done: Sequence[IterationRecord]) -> PhaseSeconds:
    return PhaseSeconds(
        **{part.name: sum(getattr(one.seconds, part.name) for one in done) for part in fields(PhaseSeconds)}
    )


def _null_for_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null_for_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_null_for_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
