"""What waits in the books, and settings that were changed while the run was stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from twinpod.cli.inspect import lines_of
from twinpod.master import books_read as read
from twinpod.master import books_settings
from twinpod.master.books import Books, Identity, Scored
from twinpod.master.inspect import report
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.rollout import GroupState, Segment, Stop
from twinpod.replay.baseline import Baseline
from twinpod.replay.policy import choose, plan_batch
from twinpod.testing.small_run import prompts, record

BEFORE = {
    "algorithm": {"groupSize": 2, "learningRate": "5e-4"},
    "rollout": {"maxTokens": 6, "temperature": "1", "repeat": {"penalty": "0"}},
    "reward": {"kind": "prefix", "target": None},
}


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    opened = Books.open(tmp_path, Identity(job="j", fields={}))
    opened.begin_epoch(1)
    opened.record_version(1, 0, "d", "l")
    start(opened)
    yield opened
    opened.close()


def start(books: Books, most: int = 6, **changes: Any) -> books_settings.Taken:
    """A start whose settings differ so, as `algorithm__groupSize=4`."""
    settings = json.loads(json.dumps(BEFORE))
    for name, value in changes.items():
        *parents, last = name.split("__")
        node = settings
        for part in parents:
            node = node[part]
        node[last] = value
    taken = books_settings.take(books, json.dumps(settings), most)
    books_settings.keep(books, json.dumps(settings))
    return taken


def segment(one: int, count: int, stop: Stop, index: int = 0) -> Segment:
    return Segment(
        trajectory_id=one, index=index, version=1, tokens=TokenIds(range(count)), logps=LogProbs((-0.5,) * count),
        stop=stop, pod="w",
    )  # fmt: skip


def score(books: Books, *ids: int, reward: float = 1.0) -> None:
    books.score([Scored(trajectory_id=one, reward=reward, correct=True, masked="") for one in ids])


def test_groups_keep_the_size_that_they_were_begun_with_and_are_trained_together(books: Books) -> None:
    groups = [
        group
        for number, size in enumerate((2, 8, 3, 4096, 2))
        for group in books.begin_groups([(prompts(9)[number], 0)], size, 1)
    ]
    ids = [one.trajectory_id for group in groups for one in group.trajectories]
    assert len(set(ids)) == len(ids) == 2 + 8 + 3 + 4096 + 2
    small = [group for group in groups if len(group.trajectories) < 4096]
    for group in small:
        for number, one in enumerate(group.trajectories):
            books.store([segment(one.trajectory_id, 2, Stop.EOS)], 1)
            score(books, one.trajectory_id, reward=float(number == 0))
    chosen = choose(read.held(books.connection), 10)
    assert chosen == tuple(group.group_id for group in small)
    plan = plan_batch(
        read.scored(books.connection, chosen), iteration=1, version=1, baseline=Baseline.MEAN, tau=0.1, size=8
    )
    assert [sample.advantage for sample in plan.samples if sample.reward == 1.0] == pytest.approx(
        [1 / 2, 7 / 8, 2 / 3, 1 / 2]
    )
    assert sum(sample.weight for sample in plan.samples) == pytest.approx(1.0)


def test_an_answer_as_long_as_the_new_limit_ends_as_it_is_and_is_judged(books: Books) -> None:
    (group,) = books.begin_groups([(prompts(1)[0], 0)], 3, 1)
    short, equal, long = (one.trajectory_id for one in group.trajectories)
    books.store([segment(short, 2, Stop.CUT), segment(equal, 3, Stop.BUDGET)], 1)
    books.store([segment(long, 2, Stop.CUT), segment(long, 3, Stop.BUDGET, index=1)], 1)
    assert start(books, 6).ended == 0
    assert start(books, 3, rollout__maxTokens=3).ended == 2
    assert start(books, 3, rollout__maxTokens=3).ended == 0
    assert read.unscored(books.connection) == (equal, long)
    (found,) = read.groups_in(books.connection, (GroupState.OPEN,))
    assert [(one.terminal, [part.stop for part in one.segments]) for one in found.trajectories] == [
        (False, [Stop.CUT]),
        (True, [Stop.LENGTH]),
        (True, [Stop.CUT, Stop.LENGTH]),
    ]
    assert start(books, 2, rollout__maxTokens=2).ended == 1
    assert len(read.groups_in(books.connection, (GroupState.FINISHED,))) == 1


def test_answers_that_wait_are_judged_anew_by_another_reward_and_trained_ones_are_not(books: Books) -> None:
    trained, waiting, open_group = books.begin_groups([(one, 0) for one in prompts(3)], 2, 1)
    for group in (trained, waiting):
        for one in group.trajectories:
            books.store([segment(one.trajectory_id, 2, Stop.EOS)], 1)
            score(books, one.trajectory_id)
    first, second = (one.trajectory_id for one in open_group.trajectories)
    books.store([segment(first, 2, Stop.EOS), segment(second, 1, Stop.CUT)], 1)
    books.score([Scored(trajectory_id=first, reward=None, correct=False, masked="no judge")])
    books.commit(record(1, version=2), [trained.group_id], "d")
    start(books, algorithm__learningRate="1e-4", rollout__temperature="0.5")
    assert read.unscored(books.connection) == ()
    for change in ({"reward__kind": "exact"}, {"reward__target": "a:b"}, {"rollout__repeat": {"penalty": "1"}}):
        start(books)
        score(books, first, *(one.trajectory_id for one in waiting.trajectories))
        start(books, **change)
        assert read.unscored(books.connection) == (*(one.trajectory_id for one in waiting.trajectories), first)
    assert [one.reward for one in read.load_groups(books.connection, [trained.group_id])[0].trajectories] == [1.0, 1.0]


def test_another_temperature_asks_for_a_new_version_until_it_is_kept(books: Books) -> None:
    settings = json.loads(json.dumps(BEFORE)) | {"rollout": BEFORE["rollout"] | {"temperature": "0.7"}}  # type: ignore[operator]
    for _ in range(2):  # a start that was killed before its version was published
        assert books_settings.take(books, json.dumps(settings), 6).drawn_anew
    books_settings.keep(books, json.dumps(settings))
    assert not books_settings.take(books, json.dumps(settings), 6).drawn_anew


def test_the_books_say_since_when(books: Books) -> None:
    books.commit(record(1, version=2), [], "d")
    books.commit(record(2, version=3), [], "d")
    assert report(books.connection).settings_changes == ()
    start(books, algorithm__learningRate="1e-4", reward__target="a:b")
    told = [line for line in lines_of(report(books.connection)) if line.startswith("settings")]
    assert told == [
        'settings       from iteration 3 on: algorithm.learningRate "5e-4" → "1e-4"',
        'settings       from iteration 3 on: reward.target null → "a:b"',
    ]
    books.commit(record(3, version=4), [], "d")
    start(books, algorithm__learningRate="1e-5", reward__target="a:b")
    books.commit(record(4, version=5), [], "d")
    changes = report(books.connection).settings_changes
    assert [(one.iteration, one.field, json.loads(one.new)) for one in changes] == [
        (3, "algorithm.learningRate", "1e-4"),
        (3, "reward.target", "a:b"),
        (4, "algorithm.learningRate", "1e-5"),
    ]
