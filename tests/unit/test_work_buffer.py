"""The work buffer: who gets what, when a phase is over. Tables and sentences, no time, no I/O."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from twinpod.master.work_buffer import Rules, WorkBuffer
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.rollout import Group, GroupState, Segment, Stop, Trajectory, WorkItem, WorkResult
from twinpod.testing.small_run import generate, prompts, settings

SAMPLING = replace(settings().sampling, segment_tokens=4, max_tokens=8)


def group(number: int, k: int = 2, *, born: int = 1, saved: Sequence[int] = (), stop: Stop = Stop.CUT) -> Group:
    """Group `number` of k trajectories with these many saved tokens each."""
    trajectories = []
    for j in range(k):
        count = saved[j] if j < len(saved) else 0
        one = number * k + j
        tokens, logps = TokenIds(range(20, 20 + count)), LogProbs([0.0] * count)
        chain = (
            (Segment(trajectory_id=one, index=0, version=1, tokens=tokens, logps=logps, stop=stop, pod="w"),)
            if count
            else ()
        )
        trajectories.append(Trajectory(trajectory_id=one, group_id=number, segments=chain, reward=None))
    prompt = prompts(1, first=number)[0]
    return Group(
        group_id=number, epoch=0, prompt=prompt, born=born, state=GroupState.OPEN, trajectories=tuple(trajectories)
    )


def buffer(wanted: int = 2, in_flight: int = 2, **changes: object) -> WorkBuffer:
    rules = Rules(wanted=wanted, in_flight=in_flight, sampling=SAMPLING, seed=1)
    return WorkBuffer(rules=replace(rules, **changes), epoch=3, iteration=5, version=9)  # type: ignore[arg-type]


def answer(item: WorkItem, *, stop: Stop = Stop.EOS, count: int = 2, only: int | None = None) -> WorkResult:
    """`count` tokens for each trajectory of the item, or for the first `only` of them."""
    segments = tuple(
        Segment(
            trajectory_id=one.trajectory_id,
            index=one.index,
            version=9,
            tokens=TokenIds((5,) * count),
            logps=LogProbs((0.0,) * count),
            stop=stop,
            pod="w",
        )
        for one in item.trajectories[:only]
    )
    return WorkResult(
        item_id=item.item_id,
        worker="w",
        trajectories=tuple(one.trajectory_id for one in item.trajectories),
        segments=segments,
        failed="",
        refused_versions=0,
        seconds=0.0,
    )


def give(work: WorkBuffer, result: WorkResult):  # type: ignore[no-untyped-def]
    return work.returned(result, result.segments, 0.0)


def test_a_fresh_group_is_one_item_with_k_resumptions() -> None:
    work = buffer(1, 1)
    work.admit(group(0, k=3), {})
    (item,) = work.take("w", 100, 1, 0.0)
    assert [one.trajectory_id for one in item.trajectories] == [0, 1, 2]
    assert (item.version, item.sampling.segment_tokens, item.item_id) == (9, 4, "3/5/0")


def test_resumed_trajectories_share_an_item_when_they_are_equally_long() -> None:
    work = buffer(1, 1)
    work.admit(group(0, k=4, saved=(2, 3, 2, 3)), {})
    items = work.take("w", 100, 1, 0.0)
    assert sorted([one.trajectory_id for one in item.trajectories] for item in items) == [[0, 2], [1, 3]]


def test_saved_segments_go_before_fresh_prompts_and_older_before_younger() -> None:
    work = buffer(4, 4)
    work.admit(group(1, born=5), {})
    work.admit(group(2, born=4, saved=(1, 1)), {})
    work.admit(group(3, born=3, saved=(1, 1)), {})
    assert [item.group_id for item in work.take("w", 100, 1, 0.0)] == [3, 2, 1]


@pytest.mark.parametrize(
    ("wanted", "in_flight", "open_groups", "finished", "room"),
    [
        (2, 2, 0, 0, 2),  # the start of a phase
        (2, 2, 1, 1, 0),  # one done, one runs: nothing is begun in vain
        (2, 2, 0, 1, 1),  # one still to come
        (2, 2, 0, 2, 0),  # enough
        (2, 4, 0, 0, 4),  # more in flight than wanted: slots are filled
        (2, 4, 3, 1, 1),  # and a freed one is refilled at once
        (2, 4, 2, 2, 0),  # until there are enough
    ],
)
def test_room_for_fresh_groups(wanted: int, in_flight: int, open_groups: int, finished: int, room: int) -> None:
    work = buffer(wanted, in_flight)
    work.finished = finished
    for number in range(open_groups):
        work.admit(group(number), {})
    assert work.room() == room


def test_a_group_at_its_budget_makes_room_for_another_but_keeps_its_slot() -> None:
    work = buffer(2, 3)
    for number in range(3):
        work.admit(group(number), {})
    for item in work.take("w", 100, 1, 0.0):
        give(work, answer(item, stop=Stop.BUDGET, count=4))
    assert (work.room(), work.closing, work.done, work.open_groups) == (0, True, True, 3)


def test_the_phase_ends_when_enough_groups_are_finished_and_what_runs_is_awaited() -> None:
    work = buffer(1, 2)
    work.admit(group(0), {})
    work.admit(group(1), {})
    first, second = work.take("w", 100, 1, 0.0)
    taken = give(work, answer(first))
    assert (taken.finished, [one.trajectory_id for one in taken.ended]) == ((0,), [0, 1])
    assert (work.closing, work.done, work.take("x", 100, 1, 0.0)) == (True, False, ())
    give(work, answer(second, stop=Stop.CUT, count=1))
    assert work.done


def test_a_group_is_held_until_all_its_trajectories_are_terminal() -> None:
    work = buffer(1, 1)
    work.admit(group(0), {})
    (item,) = work.take("w", 100, 1, 0.0)
    assert give(work, answer(item, only=1)).finished == ()
    (rest,) = work.take("w", 100, 1, 0.0)
    assert [one.trajectory_id for one in rest.trajectories] == [1]
    assert give(work, answer(rest)).finished == (0,)


def test_a_cut_trajectory_may_spend_only_what_is_left_of_its_budget_in_the_same_phase() -> None:
    work = buffer(1, 1)
    work.admit(group(0, saved=(3, 3)), {0: 3, 1: 3})
    (item,) = work.take("w", 100, 1, 0.0)
    assert item.sampling.segment_tokens == 1


def test_a_failed_item_is_ready_again_and_a_group_that_always_fails_rests() -> None:
    work = buffer(1, 1, most_failures=2)
    work.admit(group(0), {})
    for _ in range(2):
        (item,) = work.take("w", 100, 1, 0.0)
        give(work, replace(answer(item, only=0), failed="engine gone"))
    assert (work.take("w", 100, 1, 0.0), work.done, work.failures) == ((), True, 4)


def test_what_a_worker_no_longer_holds_is_handed_out_again() -> None:
    work = buffer(2, 2)
    work.admit(group(0), {})
    work.admit(group(1), {})
    lost, kept = work.take("w", 100, 1, 0.0)
    assert work.reclaim("w", [kept.item_id]) == 1
    (again,) = work.take("x", 100, 1, 0.0)
    assert (again.group_id, again.item_id != lost.item_id) == (lost.group_id, True)


def test_a_silent_worker_loses_its_items_after_the_patience() -> None:
    work = buffer(1, 1)
    work.admit(group(0), {})
    work.take("w", 100, 1, 10.0)
    assert (work.lose_silent(50.0, 45.0), work.lose_silent(56.0, 45.0)) == (0, 1)


def test_a_late_result_of_a_lost_item_counts_once() -> None:
    work = buffer(1, 1)
    work.admit(group(0), {})
    (lost,) = work.take("w", 100, 1, 0.0)
    work.reclaim("w", ())
    (again,) = work.take("x", 100, 1, 0.0)
    assert give(work, answer(lost)).finished == (0,)
    late = answer(again)
    assert work.returned(late, (), 0.0).finished == ()  # the books knew those segments
    assert (work.finished, work.done) == (1, True)


def test_several_engines_share_what_is_ready_and_the_faster_one_gets_more() -> None:
    work = buffer(8, 8)
    for number in range(8):
        work.admit(group(number), {})
    running = {"fast": list(work.take("fast", 16, 2, 0.0)), "slow": list(work.take("slow", 16, 2, 0.0))}
    given = {name: sum(len(item.trajectories) for item in items) for name, items in running.items()}
    assert 0 < given["fast"] <= 8
    while running["fast"]:
        give(work, replace(answer(running["fast"].pop()), worker="fast"))
        more = work.take("fast", 16, 2, 0.0)
        running["fast"] += more
        given["fast"] += sum(len(item.trajectories) for item in more)
    assert given["fast"] + given["slow"] == 16
    assert given["fast"] > given["slow"]


def test_an_idle_worker_with_little_room_gets_a_part_of_a_group() -> None:
    work = buffer(1, 1)
    work.admit(group(0, k=5), {})
    (item,) = work.take("w", 3, 1, 0.0)
    assert len(item.trajectories) == 3


def test_a_trajectory_counts_when_it_ends_and_its_item_stays_open_for_the_rest() -> None:
    work = buffer(1, 1)
    work.admit(group(0, k=3), {})
    (item,) = work.take("w", 100, 1, 0.0)
    first, *rest = answer(item).segments
    part = replace(answer(item), trajectories=(first.trajectory_id,), segments=(first,))
    assert [one.trajectory_id for one in give(work, part).ended] == [first.trajectory_id]
    assert (work.holds("w"), work.take("x", 100, 1, 0.0)) == (True, ())
    failed = replace(part, trajectories=(1,), segments=(), failed="engine gone")
    give(work, failed)
    give(work, failed)  # repeated on the way: counts once
    assert work.failures == 1
    (again,) = work.take("x", 100, 1, 0.0)
    assert [one.trajectory_id for one in again.trajectories] == [1]
    give(work, replace(answer(again), worker="x"))
    assert give(work, replace(part, trajectories=(2,), segments=(rest[1],))).finished == (0,)
    assert work.done


def calls(act: Callable[[], object]) -> int:
    """Functions that are called meanwhile."""
    count = 0

    def see(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


def test_a_pull_and_a_return_cost_the_same_with_a_thousand_slots_as_with_ten() -> None:
    costs = []
    for slots in (10, 1000):
        work = buffer(slots, slots)
        for number in range(slots):
            work.admit(group(number), {})
        items: list[WorkItem] = []
        pull = calls(lambda work=work, items=items: items.extend(work.take("w", 4, 2, 0.0)))  # type: ignore[misc]
        back = calls(lambda work=work, items=items: [give(work, answer(item)) for item in items])  # type: ignore[misc]
        costs.append((pull, back, calls(work.room), calls(work.settle), calls(lambda work=work: work.reclaim("w", ()))))  # type: ignore[misc]
    assert all(many <= 1.5 * few + 10 for few, many in zip(*costs, strict=True)), costs


def test_enough_finished_groups_from_before_end_the_phase_at_once() -> None:
    work = buffer(1, 1)
    work.finished = 1
    work.settle()
    assert work.done


def test_the_fake_engine_ends_every_trajectory_within_its_limit() -> None:
    work = buffer(1, 1)
    work.admit(group(0, k=6), {})
    for _ in range(20):
        for item in work.take("w", 100, 1, 0.0):
            give(work, generate(item, "w"))
    assert work.done
