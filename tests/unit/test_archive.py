"""Old trajectories leave the books for Parquet files: whole, once, wherever the master is killed, and still counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from twinpod.errors import EnvironmentFault, InputError
from twinpod.master import archive, archiving
from twinpod.master.archiving import Archive, movable, remove, through, write_missing
from twinpod.master.books import FILE, Books, Identity, Scored
from twinpod.master.inspect import inspect
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.rollout import Group, Segment, Stop
from twinpod.records.run import RunReport
from twinpod.testing.small_run import prompts, record

ITERATIONS = 4


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    """Four iterations of two groups of two; a group given up in each; one that waits. Answers of two versions."""
    books = Books.open(tmp_path / "state", Identity(job="j", fields={}))
    books.begin_epoch(1)
    books.record_version(1, 0, "d")
    for iteration in range(1, ITERATIONS + 1):
        groups = begin(books, 3, iteration)
        for group in groups[:2]:
            answer(books, group, iteration)
        books.drop([groups[2].group_id], "too_old")
        committed = replace(record(iteration, version=iteration + 1), snapshot=f"s{iteration}")
        books.commit(committed, [group.group_id for group in groups[:2]], "d")
    begin(books, 1, ITERATIONS + 1)
    yield books
    books.close()


def begin(books: Books, count: int, iteration: int) -> tuple[Group, ...]:
    known = books.connection.execute("SELECT count(*) FROM prompts").fetchone()[0]
    return books.begin_groups([(prompts(40)[known + number], 0) for number in range(count)], 2, iteration)


def answer(books: Books, group: Group, iteration: int) -> None:
    older = max(1, iteration - 1)
    for one in (one.trajectory_id for one in group.trajectories):
        first = Segment(
            trajectory_id=one, index=0, version=older, tokens=TokenIds((one, 7)), logps=LogProbs((-0.5, -1.0)),
            stop=Stop.CUT, pod="a",
        )  # fmt: skip
        last = replace(first, index=1, version=iteration, tokens=TokenIds((9,)), logps=LogProbs((-2.0,)),
                       stop=Stop.EOS, pod="b")  # fmt: skip
        books.store([first, last], iteration)
        books.score([Scored(trajectory_id=one, reward=one / 10, correct=True, masked="")])


def folder(books: Books) -> Path:
    return books.folder.parent / "snapshots"


def file_of(books: Books, iteration: int) -> Path:
    return archive.file_of(folder(books), iteration)


def write(books: Books, iteration: int) -> tuple[int, ...]:
    """The file of an iteration, and what it holds."""
    write_missing(books.folder / FILE, file_of(books, iteration), iteration)
    return archive.group_ids(file_of(books, iteration), run_of(books))


def run_of(books: Books) -> str:
    return str(books.connection.execute("SELECT value FROM meta WHERE key = 'run'").fetchone()[0])


def counted(report: RunReport) -> RunReport:
    """Everything that a report says apart from where the trajectories are."""
    return replace(report, trajectories_archived=0)


def test_a_file_has_every_token_and_where_it_came_from_and_pandas_reads_it(books: Books) -> None:
    pandas = pytest.importorskip("pandas")
    groups = write(books, 2)
    assert len(groups) == 4, "two trained in iteration 2, two given up by then"
    table = pandas.read_parquet(file_of(books, 2))
    row = table[table.state == "trained"].iloc[0]
    one = int(row.trajectory_id)
    assert (row.iteration, row.reward, bool(row.correct), row.stop) == (2, one / 10, True, "eos")
    assert (list(row.tokens), list(row.logps)) == ([one, 7, 9], [-0.5, -1.0, -2.0])
    assert (list(row.versions), list(row.counts), list(row.pods)) == ([1, 2], [2, 1], ["a", "b"])
    assert len(row.prompt) == 2
    given_up = table[table.state == "dropped"]
    assert (len(given_up), given_up.iteration.isna().all()) == (4, True)


def test_numbers_of_a_run_stay_true_whatever_has_moved(books: Books) -> None:
    before = inspect(books.folder)
    groups = write(books, 2)
    remove(books, groups[:1])  # killed between two transactions
    half = inspect(books.folder)
    remove(books, groups)
    after = inspect(books.folder)
    assert counted(half) == counted(after) == counted(before)
    assert (before.trajectories_archived, half.trajectories_archived, after.trajectories_archived) == (0, 2, 8)
    assert books.connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert (before.chains_broken, before.duplicate_tokens) == (0, 0)


def test_a_move_that_is_made_again_changes_nothing(books: Books) -> None:
    groups = write(books, 2)
    content = file_of(books, 2).read_bytes()
    (late,) = begin(books, 1, 1)
    books.drop([late.group_id], "too_old")  # given up after the file was written: it may not vanish with it
    assert write(books, 2) == groups
    for _ in range(2):
        remove(books, groups)
    assert file_of(books, 2).read_bytes() == content
    assert movable(books.connection, 2) == (late.group_id,)
    assert late.group_id in write(books, 3)


@pytest.mark.parametrize("killed_after", ["begin", "write", "remove", "all"])
async def test_a_master_killed_anywhere_goes_on_where_the_move_stood(books: Books, killed_after: str) -> None:
    before = inspect(books.folder)
    archiving.begin(books, 1)
    if killed_after != "begin":
        groups = write(books, 1)
        if killed_after != "write":
            remove(books, groups[:2] if killed_after == "remove" else groups)
    (folder(books) / archive.FOLDER).mkdir(parents=True, exist_ok=True)
    (folder(books) / archive.FOLDER / ".iteration-000001.parquet.part").write_bytes(b"half of a file")
    moving = Archive(Direct(books), folder(books), keep=2)  # type: ignore[arg-type]
    moving.start(ITERATIONS, [1, 2, 3, 4])
    await moving.settle()
    report = inspect(books.folder)
    assert counted(report) == counted(before)
    assert report.trajectories_archived == 2 * (2 * 2 + 2), "iterations 1 and 2: two trained and one given up in each"
    files = sorted(path.name for path in (folder(books) / archive.FOLDER).glob("iteration-*"))
    assert files == ["iteration-000001.parquet", "iteration-000002.parquet"]
    assert {row for number in (1, 2) for row in archive.group_ids(file_of(books, number), run_of(books))}.isdisjoint(
        row[0] for row in books.connection.execute("SELECT group_id FROM groups")
    )


class Direct:
    """AsyncBooks without a thread."""

    def __init__(self, books: Books) -> None:
        self.books = books

    async def do(self, act: Callable[[Books], object]) -> object:
        return act(self.books)


@pytest.mark.parametrize(
    ("now", "keep", "snapshots", "last"),
    [
        (60, 50, [10, 20, 30, 40, 50, 60], 10),
        (40, 50, [10, 20, 30, 40], 0),
        (60, 50, [60], 0),  # no snapshot before the newest
        (60, 50, [], 0),
        (60, 10, [8, 60], 8),  # only what the snapshot before the newest does not need
    ],
)
def test_nothing_moves_that_a_resume_may_need(now: int, keep: int, snapshots: list[int], last: int) -> None:
    assert through(now, keep, snapshots) == last


def test_a_resume_does_not_go_back_behind_what_has_moved(books: Books) -> None:
    archiving.begin(books, 2)
    assert books.resume(lambda name: name in ("s2", "s1")).iteration == 2
    with pytest.raises(InputError, match=r"of iteration 1, .* up to iteration 2 has left"):
        books.resume(lambda name: name == "s1")


def test_a_file_of_another_run_is_refused_and_so_is_one_that_cannot_be_read(books: Books, tmp_path: Path) -> None:
    write(books, 1)
    with pytest.raises(InputError, match="was written by another run"):
        archive.group_ids(file_of(books, 1), "other")
    file_of(books, 1).write_bytes(b"no parquet")
    with pytest.raises(EnvironmentFault, match="cannot be read"):
        archive.group_ids(file_of(books, 1), run_of(books))


def test_a_volume_without_room_says_so(books: Books, tmp_path: Path) -> None:
    (tmp_path / "full").write_text("a file where a folder should be")
    with pytest.raises(EnvironmentFault, match=r"iteration-000001\.parquet"):
        write_missing(books.folder / FILE, tmp_path / "full" / archive.FOLDER / "iteration-000001.parquet", 1)


def test_a_master_that_leaves_does_not_wait_for_a_file_and_leaves_none_by_its_name(books: Books) -> None:
    leaving = Event()
    leaving.set()
    with pytest.raises(archiving.Left):
        write_missing(books.folder / FILE, file_of(books, 1), 1, leaving)
    assert not file_of(books, 1).exists()
    assert write(books, 1)


def test_pages_of_what_has_moved_are_used_again(books: Books) -> None:
    def pages() -> int:
        return int(books.connection.execute("PRAGMA page_count").fetchone()[0])

    grown = []
    long, logps = TokenIds(range(30_000)), LogProbs([-1.0] * 30_000)
    for iteration in range(ITERATIONS + 1, ITERATIONS + 9):
        (group,) = begin(books, 1, iteration)
        chain = [
            Segment(
                trajectory_id=one.trajectory_id, index=0, version=1, tokens=long, logps=logps, stop=Stop.EOS, pod="a"
            )
            for one in group.trajectories
        ]  # fmt: skip
        books.store(chain, iteration)
        books.score([Scored(trajectory_id=one.trajectory_id, reward=1.0, correct=True, masked="") for one in chain])
        books.commit(record(iteration, version=iteration + 1), [group.group_id], "d")
        remove(books, [group.group_id])
        grown.append(pages())
    assert grown[-1] - grown[0] < 10, "each iteration has 120 pages of tokens"
