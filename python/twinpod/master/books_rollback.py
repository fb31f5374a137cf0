"""Giving commits up: back to the newest one whose snapshot exists (design 8.4). Within the caller's transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from twinpod.errors import InputError, IntegrityError
from twinpod.master import books_read as read

RECOUNT_PROMPT = """
UPDATE prompts SET (times_trained, tries, reward_sum, right_count) = (
    SELECT count(*), coalesce(sum(t.tries), 0), coalesce(sum(t.reward_sum), 0), coalesce(sum(t.right_count), 0)
    FROM trained t WHERE t.prompt_id = prompts.prompt_id AND t.rolled_back = 0
) WHERE prompt_id = ?
"""
_REWIND = """
UPDATE trajectories SET terminal = 0, reward = NULL, correct = 0, masked = '', outcome = NULL, stop = coalesce((
    SELECT s.stop FROM segments s WHERE s.trajectory_id = trajectories.trajectory_id AND s.rolled_back = 0
    ORDER BY s.idx DESC LIMIT 1
), '') WHERE trajectory_id = ?
"""
_LOST = "rolled_back = 0 AND version IN (SELECT version FROM versions WHERE rolled_back = 1)"


def newest_snapshot(commits: Sequence[tuple[int, str]], exists: Callable[[str], bool]) -> tuple[int, str]:
    """Iteration and folder of the newest commit, newest first, whose snapshot `exists`; (0, "") when none was taken.

    InputError when snapshots were taken and all are gone: to begin again at 0 would give the whole run up in silence.
    """
    taken = [(iteration, folder) for iteration, folder in commits if folder]
    for iteration, folder in taken:
        if exists(folder):
            return iteration, folder
    if not taken:
        return 0, ""
    iteration, folder = taken[0]
    raise InputError(
        f"the books name {len(taken)} snapshots, the newest of iteration {iteration} ({Path(folder).name}),"
        " and none of them is there",
        where=f"snapshots volume {Path(folder).parent}",
        mend="give the run the volume that it wrote (spec.storage.snapshots), or begin anew in another folder",
    )


def refuse_archived(db: sqlite3.Connection, iteration: int, where: str) -> None:
    """InputError when a resume at `iteration` would need trajectories that have left the books."""
    last = int(read.meta(db, "archive_through", "0"))
    if iteration < last:
        raise InputError(
            f"the newest snapshot that is there is of iteration {iteration}, and what was trained up to iteration"
            f" {last} has left for the archive",
            where=where,
            mend="put the newer snapshots back, or begin anew in another folder",
        )


def same_weights(db: sqlite3.Connection, version: int, digest: str, layout: str) -> bool:
    """For a version that is published after a resume: IntegrityError when the books know it with other weights.

    False when nobody can tell, because ranks share the tensors in another way than before.
    """
    known = read.digest_of(db, version)
    if known and layout != read.meta(db, "weights_layout", ""):
        return False
    if known not in ("", digest):
        raise IntegrityError(
            f"the books know its weights as {known}, the trainer has published {digest} now",
            where=f"version {version}",
            mend="the snapshot, or the model's folder, was changed: give the run what it wrote, or begin anew",
        )
    return True


def roll_back(db: sqlite3.Connection, iteration: int) -> None:
    """Give up every commit after `iteration`, and every token that weights trained after it have made."""
    lost = "SELECT prompt_id FROM trained WHERE iteration > ? AND rolled_back = 0"
    prompts = set(db.execute(lost, (iteration,)))  # DISTINCT in SQL would read the whole table in the order of prompts
    db.execute(
        "UPDATE groups SET state = 'finished'"
        " WHERE group_id IN (SELECT group_id FROM trained WHERE iteration > ? AND rolled_back = 0)",
        (iteration,),
    )
    db.execute("UPDATE trained SET rolled_back = 1 WHERE iteration > ? AND rolled_back = 0", (iteration,))
    db.execute("UPDATE iterations SET rolled_back = 1 WHERE iteration > ?", (iteration,))
    db.execute("UPDATE versions SET rolled_back = 1 WHERE iteration > ?", (iteration,))
    db.executemany(RECOUNT_PROMPT, prompts)
    rewound = db.execute(f"SELECT DISTINCT trajectory_id FROM segments WHERE {_LOST}").fetchall()  # noqa: S608
    db.execute(f"UPDATE segments SET rolled_back = 1 WHERE {_LOST}")  # noqa: S608
    db.executemany(_REWIND, rewound)
    db.execute(
        "UPDATE groups SET state = 'open' WHERE state IN ('open', 'finished') AND state = 'finished'"  # by its index
        " AND EXISTS (SELECT 1 FROM trajectories t WHERE t.group_id = groups.group_id AND t.terminal = 0)"
    )
    db.execute("DELETE FROM evaluations WHERE iteration > ?", (iteration,))
