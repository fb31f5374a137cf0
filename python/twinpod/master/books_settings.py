"""Settings that were changed between two starts, and what the books' waiting groups make of them.

A change begins with the next iteration. What was begun before goes on under it, by these rules:

- `groupSize`: a group keeps the size that it was begun with; those begun from now on have the new one.
- `temperature`: the weights get a new version number, so that tokens drawn before are stale ones: their behaviour
  log-probs are those of another distribution than the trainer's.
- `maxTokens`: an answer that already has as many, or more, ends there (`Stop.LENGTH`) and is judged as it is.
- `reward.kind`, `reward.target`, `repeat.penalty`: answers that wait are judged anew, so that no group is measured by
  two rewards. What was trained stays as it was.
- `segmentTokens`, `groupsInFlight`, `maxSegmentAge`, `topP` and the rest count from the next phase on, as they stand.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from itertools import pairwise

from twinpod.api.change_rules import Difference, differences
from twinpod.master import books_read as read
from twinpod.master.books import Books
from twinpod.master.books_file import set_meta
from twinpod.records.rollout import Stop
from twinpod.records.run import SettingsChange

__all__ = ["KEY", "Taken", "changes", "keep", "take"]

KEY = "settings"  # in the table meta: those of the newest start
JUDGED_BY = ("reward.kind", "reward.target", "rollout.repeat.penalty")
DRAWN_BY = ("rollout.temperature",)
_JUDGE_AGAIN = """
UPDATE trajectories SET reward = NULL, correct = 0, masked = '' WHERE terminal = 1
AND group_id IN (SELECT group_id FROM groups WHERE state IN ('open', 'finished'))
"""
_LONG = """
SELECT t.trajectory_id FROM groups g JOIN trajectories t USING (group_id)
WHERE g.state = 'open' AND t.terminal = 0
AND (SELECT sum(count) FROM segments s WHERE s.trajectory_id = t.trajectory_id AND s.rolled_back = 0) >= ?
"""
_END_SEGMENT = """
UPDATE segments SET stop = ? WHERE trajectory_id = ? AND rolled_back = 0
AND idx = (SELECT max(idx) FROM segments WHERE trajectory_id = ? AND rolled_back = 0)
"""
_END_TRAJECTORY = "UPDATE trajectories SET stop = ?, terminal = 1 WHERE trajectory_id = ?"
_FINISH_GROUPS = """
UPDATE groups SET state = 'finished' WHERE state = 'open'
AND NOT EXISTS (SELECT 1 FROM trajectories t WHERE t.group_id = groups.group_id AND t.terminal = 0)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a start found changed."""

    changes: tuple[Difference, ...]
    drawn_anew: bool  # tokens are drawn from another distribution: the weights need a new version number
    ended: int  # answers that had grown to the new `maxTokens` or beyond


def take(books: Books, recorded: str, max_tokens: int) -> Taken:
    """The settings of this start; see the module for what becomes of what waits. Safe to repeat until `keep`."""

    def act(db: sqlite3.Connection) -> Taken:
        before = read.meta(db, KEY, "")
        found = differences(json.loads(before), json.loads(recorded)) if before else ()
        paths = {one.path for one in found}
        if paths & {*JUDGED_BY}:
            db.execute(_JUDGE_AGAIN)
        long = [row[0] for row in db.execute(_LONG, (max_tokens,))]
        stop = Stop.LENGTH.value
        db.executemany(_END_SEGMENT, [(stop, one, one) for one in long])
        db.executemany(_END_TRAJECTORY, [(stop, one) for one in long])
        db.execute(_FINISH_GROUPS)
        return Taken(changes=found, drawn_anew=bool(paths & {*DRAWN_BY}), ended=len(long))

    return books.write(act)


def keep(books: Books, recorded: str) -> None:
    """Iterations run under these settings from now on: their version is published."""
    books.write(lambda db: set_meta(db, KEY, recorded))


def changes(db: sqlite3.Connection) -> tuple[SettingsChange, ...]:
    """What was changed since when, on the surviving line; the newest start's settings belong to the next iteration."""
    rows = db.execute("SELECT iteration, settings FROM iterations WHERE rolled_back = 0 ORDER BY iteration").fetchall()
    if now := read.meta(db, KEY, ""):
        rows.append((rows[-1][0] + 1 if rows else 1, now))
    found: list[SettingsChange] = []
    for (_, before), (iteration, after) in pairwise(rows):
        if before and after and before != after:
            found += (
                SettingsChange(iteration=iteration, field=one.path, old=json.dumps(one.old), new=json.dumps(one.new))
                for one in differences(json.loads(before), json.loads(after))
            )
    return tuple(found)
