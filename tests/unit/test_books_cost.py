"""What a run asks of its books again and again costs the same with 10,000 trained prompts as with 100: the work is
counted in steps of SQLite's own machine, not in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from twinpod.master import books_read as read
from twinpod.master.archiving import movable, remove
from twinpod.master.books import Books, Identity, Scored
from twinpod.master.prompts import PromptSource
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.rollout import GroupState, Segment, Stop
from twinpod.sampling.uniform import Uniform
from twinpod.testing.small_run import prompts, record

FEW, MANY = 100, 10_000  # prompts trained
A_TIME = {FEW: 50, MANY: 500}  # in one iteration
SOURCE = PromptSource(prompts(MANY + 1000), (), Uniform(size=MANY + 1000, seed=0))


def trained(folder: Path, count: int) -> Books:
    """Books of a run that has trained `count` prompts, twice as many answers, with some groups under way."""
    books = Books.open(folder, Identity(job="j", fields={}))
    books.begin_epoch(1)
    books.record_version(1, 0, "d")
    a_time, iteration = A_TIME[count], 0
    while iteration < count // a_time:
        iteration += 1
        groups = books.begin_groups(SOURCE.next(books.connection, a_time + 1), 2, iteration)
        books.drop([groups[-1].group_id], "too_old")
        ids = [one.trajectory_id for group in groups[:a_time] for one in group.trajectories]
        books.store([segment(one, Stop.CUT, 0, iteration) for one in ids], iteration)
        books.store([segment(one, Stop.EOS, 1, iteration) for one in ids], iteration)
        books.score([Scored(trajectory_id=one, reward=1.0, correct=True, masked="") for one in ids])
        books.commit(record(iteration, version=iteration + 1), [group.group_id for group in groups[:a_time]], "d")
    books.begin_groups(SOURCE.next(books.connection, 8), 2, iteration + 1)
    return books


def segment(one: int, stop: Stop, index: int, version: int) -> Segment:
    return Segment(
        trajectory_id=one,
        index=index,
        version=version,
        tokens=TokenIds((5, 6)),
        logps=LogProbs((-1, -1)),
        stop=stop,
        pod="w",
    )


def steps(books: Books, act: Callable[[Books], object]) -> int:
    """Instructions of SQLite's machine that `act` takes."""
    taken = 0

    def tick() -> int:
        nonlocal taken
        taken += 1
        return 0

    books.connection.set_progress_handler(tick, 1)
    act(books)
    books.connection.set_progress_handler(None, 0)
    return taken


def iterated(books: Books) -> None:
    """A whole iteration on what waits: the path of a run, in its order."""
    db = books.connection
    number = read.iterations(db)[-1].iteration + 1
    version = read.surviving_version(db)
    assert read.held(db)
    groups = read.groups_in(db, (GroupState.OPEN,))
    read.spent_in(db, number)
    ids = [one.trajectory_id for group in groups for one in group.trajectories]
    for index, stop in enumerate((Stop.CUT, Stop.EOS)):
        stored = books.store([segment(one, stop, index, version) for one in ids], number)
        assert len(stored.accepted) == len(ids)
    read.unscored(db)
    books.score([Scored(trajectory_id=one, reward=0.5, correct=False, masked="") for one in ids])
    chosen = [group.group_id for group in groups]
    books.drop(chosen[:1], "too_old")
    read.right_share(db, chosen[1:])
    read.generated_in(db, number)
    books.commit(record(number, version=version + 1), chosen[1:], "d")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Books, Books]:
    return trained(tmp_path_factory.mktemp("few"), FEW), trained(tmp_path_factory.mktemp("many"), MANY)


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda books: SOURCE.next(books.connection, 3), id="the next prompts"),
        pytest.param(lambda books: books.begin_groups(SOURCE.next(books.connection, 1), 2, 1), id="fresh groups"),
        pytest.param(lambda books: read.held(books.connection), id="what waits"),
        pytest.param(lambda books: read.unscored(books.connection), id="what was left unscored"),
        pytest.param(lambda books: read.groups_in(books.connection, (GroupState.OPEN,)), id="open groups"),
        pytest.param(lambda books: read.newest_version(books.connection), id="the newest version"),
        pytest.param(lambda books: movable(books.connection, 0), id="what may leave the books"),
        pytest.param(lambda books: remove(books, [1, 2]), id="what leaves the books"),
    ],
)
def test_a_question_costs_the_same_however_much_was_trained(
    both: tuple[Books, Books], act: Callable[[Books], object]
) -> None:
    few, many = (steps(books, act) for books in both)
    assert 0 < many <= 1.1 * few + 20


def test_an_iteration_costs_the_same_and_so_does_giving_it_up(both: tuple[Books, Books]) -> None:
    history = [len(read.iterations(books.connection)) for books in both]
    for act, extra in ((iterated, 60 * (history[1] - history[0])), (_given_up, 80 * (history[1] - history[0]))):
        few, many = (steps(books, act) for books in both)
        assert many <= 1.1 * few + extra, "the commits themselves are read whole: some numbers an iteration"


def _given_up(books: Books) -> None:
    last = read.iterations(books.connection)[-2].iteration
    books.connection.execute("UPDATE iterations SET snapshot = 's' WHERE iteration = ?", (last,))
    assert books.resume(lambda folder: True).rolled_back == 1
