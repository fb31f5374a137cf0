"""The queue's core under virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpod_operator.schedule import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, Schedule


def fresh() -> Schedule[str]:
    return Schedule(spread=lambda: 1.0)


def test_a_key_that_is_added_often_is_worked_on_once() -> None:
    queue = fresh()
    for _ in range(5):
        queue.add("a", 0)
    assert queue.take(0) == "a"
    assert queue.take(0) is None


def test_keys_come_in_the_order_in_which_they_are_due() -> None:
    queue = fresh()
    queue.add("late", 2)
    queue.add("first", 1)
    queue.add("second", 1)
    assert [queue.take(2) for _ in range(3)] == ["first", "second", "late"]


def test_nothing_is_due_before_its_time() -> None:
    queue = fresh()
    queue.add("a", 10)
    assert queue.take(9.9) is None
    assert queue.next_at() == 10
    assert queue.take(10) == "a"


def test_an_earlier_time_wins_and_a_later_one_does_not() -> None:
    queue = fresh()
    queue.add("a", 10)
    queue.add("a", 5)
    queue.add("a", 20)
    assert queue.next_at() == 5


def test_an_event_during_the_work_makes_the_key_due_right_after_it() -> None:
    queue = fresh()
    queue.add("a", 0)
    assert queue.take(0) == "a"
    queue.add("a", 1)
    assert queue.take(1) is None, "nobody else may have it meanwhile"
    queue.done("a", 2, wake_after_s=300)
    assert queue.take(2) == "a"


def test_a_key_wakes_by_itself_when_asked_to() -> None:
    queue = fresh()
    queue.add("a", 0)
    queue.take(0)
    queue.done("a", 1, wake_after_s=5)
    assert queue.next_at() == 6


def test_the_back_off_doubles_up_to_a_cap_and_starts_anew_after_a_success() -> None:
    queue, now, delays = fresh(), 0.0, []
    queue.add("a", 0)
    for _ in range(12):
        assert queue.take(now) == "a"
        delays.append(queue.failed("a", now))
        now += delays[-1]
    assert delays[:4] == [FIRST_BACKOFF_S * 2**n for n in range(4)]
    assert delays[-1] == LONGEST_BACKOFF_S
    queue.take(now)
    queue.done("a", now, wake_after_s=0)
    queue.take(now)
    assert queue.failed("a", now) == FIRST_BACKOFF_S


@pytest.mark.parametrize(("urgent", "due"), [(False, 10), (True, 1)])
@pytest.mark.parametrize("during_the_work", [False, True])
def test_only_a_person_ends_a_back_off(urgent: bool, due: float, during_the_work: bool) -> None:
    queue = fresh()
    queue.add("a", 0)
    queue.take(0)
    if during_the_work:
        queue.add("a", 1, urgent=urgent)
        due = 0 if urgent else due
    queue.failed("a", 0, after_s=10)
    if not during_the_work:
        queue.add("a", 1, urgent=urgent)
    assert queue.next_at() == due


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), max_size=40))
def test_no_key_is_lost_and_none_comes_twice(adds: list[tuple[str, int]]) -> None:
    queue = fresh()
    for key, at in adds:
        queue.add(key, at)
    taken = []
    while (key := queue.take(100)) is not None:
        taken.append(key)
    assert sorted(taken) == sorted({key for key, _ in adds})
