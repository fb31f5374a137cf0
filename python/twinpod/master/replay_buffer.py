"""Groups between phases: which are given up, laid out for a phase, and picked for its batch."""

from __future__ import annotations

from collections.abc import Sequence

from twinpod.errors import InputError
from twinpod.master import books_read as read
from twinpod.master.books import Books
from twinpod.master.work_buffer import Ended, WorkBuffer
from twinpod.records.rollout import GroupState
from twinpod.replay.policy import Held, choose, complete, too_old, usable


def retire(books: Books, iteration: int, most: int) -> None:
    """Groups with a segment that is too old are given up; their prompts come again."""
    held = read.held(books.connection)
    if old := [one.group_id for one in held if too_old(one.oldest, iteration, most)]:
        books.drop(old, "too_old")


def left_unscored(books: Books) -> tuple[Ended, ...]:
    """Terminal trajectories without verdict, left by a master that was killed."""
    db = books.connection
    ids = set(read.unscored(db))
    groups = read.load_groups(db, read.groups_of(db, sorted(ids)))  # these alone: what waits may be large
    return tuple(
        Ended(trajectory_id=one.trajectory_id, prompt=group.prompt, tokens=one.tokens, stop=one.segments[-1].stop)
        for group in groups
        for one in group.trajectories
        if one.trajectory_id in ids
    )


def lay_out(books: Books, buffer: WorkBuffer, iteration: int) -> None:
    """Open groups into slots, with what they have spent in this iteration already; finished ones are counted."""
    db = books.connection
    _drop_unusable(books)
    buffer.finished = sum(complete(one) and usable(one) for one in read.held(db))
    spent = read.spent_in(db, iteration)
    for group in read.groups_in(db, (GroupState.OPEN,)):
        buffer.admit(group, spent)


def pick(books: Books, wanted: int) -> tuple[int, ...]:
    """The groups that make the batch of the phase that is over.

    InputError when there is none because not one answer could be scored: the reward is wrong, or has nobody to ask.
    """
    held = read.held(books.connection)
    chosen = choose(held, wanted)
    unusable = [one for one in held if complete(one) and not usable(one)]
    if unusable and not chosen and not any(one.scored for one in unusable):
        raise _nothing_scored(books, unusable)
    _drop_unusable(books)
    return chosen


def _nothing_scored(books: Books, groups: Sequence[Held]) -> InputError:
    """What is said of it; the answers are kept, and judged again by the next start."""
    first = books.connection.execute(_FIRST_REASON, (groups[0].group_id,)).fetchone()[0]
    books.write(lambda db: db.execute(_JUDGE_AGAIN))
    return InputError(
        f"not one of {sum(one.masked for one in groups)} answers could be scored; the first: {first}",
        where="reward",
        mend="mend the reward and start again: the answers are kept, and judged then",
    )


_FIRST_REASON = "SELECT masked FROM trajectories WHERE group_id = ? AND masked != '' ORDER BY trajectory_id LIMIT 1"
_JUDGE_AGAIN = """
UPDATE trajectories SET masked = '' WHERE masked != ''
AND group_id IN (SELECT group_id FROM groups WHERE state IN ('open', 'finished'))
"""


def _drop_unusable(books: Books) -> None:
    """Complete groups that no judge could score: given up, counted."""
    if lost := [one.group_id for one in read.held(books.connection) if complete(one) and not usable(one)]:
        books.drop(lost, "masked")
