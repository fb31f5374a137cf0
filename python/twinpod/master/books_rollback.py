"""Giving commits up: back to the newest one whose snapshot exists (design 8.4). Within the caller's transaction."""

from __future__ import annotations

import sqlite3

RECOUNT_PROMPT = """
UPDATE prompts SET (times_trained, tries, reward_sum, right_count) = (
    SELECT count(*), coalesce(sum(t.tries), 0), coalesce(sum(t.reward_sum), 0), coalesce(sum(t.right_count), 0)
    FROM trained t WHERE t.prompt_id = prompts.prompt_id AND t.rolled_back = 0
) WHERE prompt_id = ?
"""
_REWIND = """
UPDATE trajectories SET terminal = 0, reward = NULL, correct = 0, masked = '', stop = coalesce((
    SELECT s.stop FROM segments s WHERE s.trajectory_id = trajectories.trajectory_id AND s.rolled_back = 0
    ORDER BY s.idx DESC LIMIT 1
), '') WHERE trajectory_id = ?
"""
_LOST = "rolled_back = 0 AND version IN (SELECT version FROM versions WHERE rolled_back = 1)"


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
