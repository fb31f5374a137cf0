"""Groups between phases: which are given up, laid out for a phase, and picked for its batch."""

from __future__ import annotations

from twinpod.master import books_read as read
from twinpod.master.books import Books
from twinpod.master.work_buffer import Ended, WorkBuffer
from twinpod.records.rollout import GroupState
from twinpod.replay.policy import choose, complete, too_old, usable


def retire(books: Books, iteration: int, most: int) -> None:
    """Groups with a segment that is too old are given up; their prompts come again."""
    held = read.held(books.connection)
    if old := [one.group_id for one in held if too_old(one.oldest, iteration, most)]:
        books.drop(old, "too_old")


def left_unscored(books: Books) -> tuple[Ended, ...]:
    """Terminal trajectories without verdict, left by a master that was killed."""
    db = books.connection
    ids = set(read.unscored(db))
    return tuple(
        Ended(trajectory_id=one.trajectory_id, prompt=group.prompt, tokens=one.tokens, stop=one.segments[-1].stop)
        for group in (read.groups_in(db, (GroupState.OPEN, GroupState.FINISHED)) if ids else ())
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
    """The groups that make the batch of the phase that is over."""
    _drop_unusable(books)
    return choose(read.held(books.connection), wanted)


def _drop_unusable(books: Books) -> None:
    """Complete groups that no judge could score: given up, counted."""
    if lost := [one.group_id for one in read.held(books.connection) if complete(one) and not usable(one)]:
        books.drop(lost, "masked")
