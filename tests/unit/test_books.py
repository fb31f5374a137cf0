"""The books: durable, idempotent, and rolled back to the last snapshot without losing or repeating anything."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from twinpod.errors import EnvironmentFault, InputError, StaleEpoch
from twinpod.master import books_read as read
from twinpod.master.books import FILE, Books, Identity, Scored
from twinpod.master.inspect import from_json, inspect, to_json
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.rollout import Group, GroupState, Segment, SegmentKind, Stop
from twinpod.testing.small_run import prompts, record

IDENTITY = Identity(job="j", fields={"spec.seed": "0", "spec.model": "{}"})


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    opened = begun(tmp_path)
    yield opened
    opened.close()


def begun(folder: Path, epoch: int = 1) -> Books:
    """Books of a master that has taken over, with version 1."""
    opened = Books.open(folder, IDENTITY)
    opened.begin_epoch(epoch)
    return opened


def segment(one: int, index: int = 0, *, version: int = 1, count: int = 2, stop: Stop = Stop.EOS) -> Segment:
    return Segment(
        trajectory_id=one,
        index=index,
        version=version,
        tokens=TokenIds(range(count)),
        logps=LogProbs((-0.5,) * count),
        stop=stop,
        pod="w",
    )


def train(books: Books, group: Group, iteration: int, version: int, snapshot: str = "") -> None:
    """A whole iteration with one group, both of whose answers end at once."""
    ids = [one.trajectory_id for one in group.trajectories]
    books.store([segment(one, version=version) for one in ids], iteration)
    books.score([Scored(trajectory_id=one, reward=float(n), correct=bool(n), masked="") for n, one in enumerate(ids)])
    books.commit(record(iteration, version=version + 1, snapshot=snapshot), [group.group_id], "d")


def begin(books: Books, *numbers: int, iteration: int = 1) -> tuple[Group, ...]:
    return books.begin_groups([(prompts(20)[n], 0) for n in numbers], 2, iteration)


def test_a_segment_is_stored_once_however_often_it_comes_back(books: Books) -> None:
    books.record_version(1, 0, "d")
    (group,) = begin(books, 3)
    one = group.trajectories[0].trajectory_id
    first, again = books.store([segment(one)], 1), books.store([segment(one)], 1)
    assert (len(first.accepted), first.repeats, len(again.accepted), again.repeats) == (1, 0, 0, 1)


@pytest.mark.parametrize(
    ("what", "index", "version"),
    [
        ("a version that nobody published", 0, 7),
        ("an index beyond the chain's end", 1, 1),
        ("a trajectory of nobody", 0, 1),
    ],
)
def test_foreign_segments_are_refused(books: Books, what: str, index: int, version: int) -> None:
    books.record_version(1, 0, "d")
    (group,) = begin(books, 3)
    one = 10**6 if "nobody" in what and version == 1 else group.trajectories[0].trajectory_id
    stored = books.store([segment(one, index, version=version)], 1)
    assert (stored.accepted, stored.refused) == ((), 1)


def test_the_database_itself_refuses_a_token_twice_and_a_prompt_twice(books: Books) -> None:
    books.record_version(1, 0, "d")
    (group,) = begin(books, 3)
    one = group.trajectories[0].trajectory_id
    books.store([segment(one, stop=Stop.CUT)], 1)
    insert = (
        "INSERT INTO segments (trajectory_id, idx, start, count, version, iteration, pod, stop, tokens, logps)"
        " VALUES (?, ?, ?, 1, 1, 1, 'w', 'eos', x'00000000', x'00000000')"
    )
    for index, start in ((0, 2), (1, 1), (1, 3)):  # the same index, an overlap, a gap
        with pytest.raises(sqlite3.IntegrityError):
            books.connection.execute(insert, (one, index, start))
    with pytest.raises(sqlite3.IntegrityError):
        begin(books, 3)


def test_what_was_stored_reads_back_bit_for_bit(books: Books) -> None:
    books.record_version(1, 0, "d")
    (group,) = begin(books, 3)
    one = group.trajectories[1].trajectory_id
    sent = segment(one, stop=Stop.BUDGET)
    given = Segment(
        trajectory_id=one,
        index=1,
        version=1,
        tokens=TokenIds((8, 9)),
        logps=LogProbs(),
        stop=Stop.CUT,
        pod="",
        kind=SegmentKind.GIVEN,
    )
    books.store([sent, given], 1)
    (found,) = read.groups_in(books.connection, (GroupState.OPEN,))
    assert found.trajectories[1].segments == (sent, given)
    assert found.prompt == group.prompt


def test_a_dropped_group_gives_its_prompt_free_three_times(books: Books) -> None:
    for _ in range(2):
        (group,) = begin(books, 3)
        books.drop([group.group_id], "too_old")
        assert read.given_up(books.connection, 3) == ((3, 0),)
    (group,) = begin(books, 3)
    books.drop([group.group_id], "too_old")
    assert read.given_up(books.connection, 3) == ()
    assert read.opened(books.connection) == 1


def test_how_a_trajectory_ended_stands_in_the_books(books: Books) -> None:
    books.record_version(1, 0, "d")
    (group, given_up) = begin(books, 3, 4)
    one, other = (trajectory.trajectory_id for trajectory in group.trajectories)
    books.store([segment(one), segment(other)], 1)
    books.score([Scored(trajectory_id=one, reward=1.0, correct=True, masked="")])
    books.score([Scored(trajectory_id=other, reward=None, correct=False, masked="no judge")])
    books.drop([given_up.group_id], "too_old")
    found = dict(books.connection.execute("SELECT trajectory_id, outcome FROM trajectories"))
    left = [trajectory.trajectory_id for trajectory in given_up.trajectories]
    assert found == {one: "scored", other: "masked", **dict.fromkeys(left, "dropped")}


def test_a_resume_without_later_commits_changes_nothing(tmp_path: Path) -> None:
    first = begun(tmp_path)
    first.record_version(1, 0, "d")
    (group, saved) = begin(first, 3, 4)
    train(first, group, 1, 1, snapshot="s1")
    first.store([segment(saved.trajectories[0].trajectory_id, version=2, stop=Stop.CUT)], 2)
    first.close()
    again = begun(tmp_path, epoch=2)
    resume = again.resume(lambda folder: True)
    assert (resume.iteration, resume.version, resume.snapshot, resume.line, resume.rolled_back) == (1, 2, "s1", 1, 0)
    (found,) = read.groups_in(again.connection, (GroupState.OPEN,))
    assert len(found.trajectories[0].segments) == 1
    again.close()


def test_a_resume_rolls_back_to_the_snapshot_and_its_prompts_are_trained_again(tmp_path: Path) -> None:
    books = begun(tmp_path)
    books.record_version(1, 0, "d")
    old, early, late = begin(books, 3, 4, 5)
    train(books, old, 1, 1, snapshot="s1")
    half = [one.trajectory_id for one in early.trajectories]
    books.store(
        [segment(one, version=2, stop=Stop.CUT) for one in half], 2
    )  # made by the snapshot's own version: survives
    books.commit(record(2, version=3, groups=0), [], "d")
    books.close()
    books = begun(tmp_path, epoch=2)
    books.record_version(3, 2, "d")
    books.store([segment(one, 1, version=3) for one in half], 3)
    books.score([Scored(trajectory_id=one, reward=1.0, correct=True, masked="") for one in half])
    books.commit(record(3, version=4), [early.group_id], "d")
    train(books, late, 4, 4, snapshot="gone")
    resume = books.resume(lambda folder: folder == "s1")
    assert (resume.iteration, resume.version, resume.newest_version, resume.line, resume.rolled_back) == (1, 2, 5, 2, 3)
    groups = {
        group.group_id: group for group in read.groups_in(books.connection, (GroupState.OPEN, GroupState.FINISHED))
    }
    assert set(groups) == {early.group_id, late.group_id}
    assert [len(one.segments) for one in groups[early.group_id].trajectories] == [1, 1]
    assert [len(one.segments) for one in groups[late.group_id].trajectories] == [0, 0]
    assert all(one.reward is None for group in groups.values() for one in group.trajectories)
    late_again = books.store([segment(one.trajectory_id, version=4) for one in late.trajectories], 2)
    assert (late_again.accepted, late_again.refused) == ((), 2)  # a straggler of the line that was given up
    books.close()
    report = inspect(tmp_path)
    assert to_json(from_json(to_json(report))) == to_json(report), "whoever reads it elsewhere reads the same"
    assert (report.prompts_trained, report.iterations_rolled_back, report.duplicate_tokens) == (1, 3, 0)


@pytest.mark.parametrize("named", ["s1", ""])
def test_a_resume_without_any_of_its_snapshots_stops_and_gives_nothing_up(tmp_path: Path, named: str) -> None:
    books = begun(tmp_path)
    books.record_version(1, 0, "d")
    first, second = begin(books, 3, 4)
    train(books, first, 1, 1, snapshot=f"/twinpod/snapshots/{named}" if named else "")
    train(books, second, 2, 2)
    if not named:  # no snapshot was ever due: the beginning is the right place
        assert books.resume(lambda folder: False).iteration == 0
        books.close()
        return
    with pytest.raises(InputError, match=r"snapshots volume /twinpod/snapshots: the books name 1 snapshots.*\(s1\)"):
        books.resume(lambda folder: False)
    assert [one.iteration for one in read.iterations(books.connection)] == [1, 2], "nothing was rolled back"
    assert books.resume(lambda folder: folder.endswith("s1")).iteration == 1
    books.close()


def test_a_group_trained_after_the_snapshot_on_older_tokens_only_is_finished_again(tmp_path: Path) -> None:
    books = begun(tmp_path)
    books.record_version(1, 0, "d")
    first, second = begin(books, 3, 4)
    ids = [one.trajectory_id for one in second.trajectories]
    books.store([segment(one) for one in ids], 1)
    books.score([Scored(trajectory_id=one, reward=1.0, correct=True, masked="") for one in ids])
    train(books, first, 1, 1, snapshot="s1")
    books.commit(record(2, version=3), [second.group_id], "d")
    books.resume(lambda folder: True)
    (group,) = read.groups_in(books.connection, (GroupState.FINISHED,))
    assert [one.reward for one in group.trajectories] == [1.0, 1.0]
    books.close()


def test_a_commit_is_all_or_nothing(books: Books) -> None:
    books.record_version(1, 0, "d")
    (group,) = begin(books, 3)
    train(books, group, 1, 1)
    with pytest.raises(sqlite3.IntegrityError):
        books.commit(record(2, version=3), [group.group_id], "d")  # trained already
    assert [one.iteration for one in read.iterations(books.connection)] == [1]
    assert read.newest_version(books.connection) == 2


def test_a_folder_of_another_job_is_refused_by_the_field_that_differs(tmp_path: Path) -> None:
    other = Identity(job="j", fields={"spec.seed": "1", "spec.model": "{}"})
    Books.open(tmp_path, other).close()  # nothing was made yet, so the input may be corrected
    books = begun(tmp_path)
    books.record_version(1, 0, "d")
    books.close()
    with pytest.raises(InputError, match=r"another spec\.seed"):
        Books.open(tmp_path, other)


@pytest.mark.parametrize("schema", [1, 99])
def test_another_schema_is_refused(tmp_path: Path, schema: int) -> None:
    begun(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute(f"PRAGMA user_version = {schema}")
    with pytest.raises(InputError, match=f"schema {schema}"):
        Books.open(tmp_path, IDENTITY)


def test_a_second_master_on_the_folder_is_refused(tmp_path: Path, books: Books) -> None:
    with pytest.raises(EnvironmentFault, match="another master"):
        Books.open(tmp_path, IDENTITY)


def test_an_older_epoch_may_not_write(books: Books) -> None:
    books.connection.execute("UPDATE meta SET value = '5' WHERE key = 'epoch'")
    with pytest.raises(StaleEpoch):
        books.record_version(1, 0, "d")


def test_a_file_that_is_no_database_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all, but long enough to look like one" * 20)
    with pytest.raises(EnvironmentFault, match="not a database"):
        Books.open(tmp_path, IDENTITY)
    with pytest.raises(InputError, match="no books"):
        inspect(tmp_path / "elsewhere")
