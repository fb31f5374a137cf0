"""Whole runs of the master with fake halves and workers: straight through, and with the plug pulled at every event."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.flow.etcd_alarm import no_space

from twinpod.coordination.etcd import EtcdStore
from twinpod.coordination.keys import VersionNote
from twinpod.errors import EngineFault, InputError, IntegrityError, NumericsError, WeightsGapError
from twinpod.master.__main__ import exit_code
from twinpod.master.archive import FOLDER
from twinpod.master.books import FILE
from twinpod.master.books_read import open_read_only
from twinpod.master.inspect import inspect, to_json
from twinpod.master.judges import Lost
from twinpod.records import codec
from twinpod.records.life import Command, Verb
from twinpod.records.rollout import Prompt
from twinpod.replay.baseline import Baseline
from twinpod.reward.port import Verdict, masked
from twinpod.testing.etcd_server import EtcdServer
from twinpod.testing.fakes_master import Plug, PowerCut, World
from twinpod.testing.small_run import LengthReward, settings


async def test_three_iterations_run_to_success_and_the_books_tell_them(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.run()
    report = inspect(tmp_path)
    assert (report.state, report.iterations_committed, report.epoch, report.line) == ("Succeeded", 3, 1, 1)
    assert report.evaluations[0].prompts == 3
    assert_sound(world, tmp_path)
    assert (tmp_path / "snapshots" / "export").is_dir()
    assert '"Succeeded"' in to_json(report)


async def test_orders_of_an_iteration_come_in_the_order_of_the_circle(tmp_path: Path) -> None:
    world = World(tmp_path, iterations=1, sampling=replace(settings().sampling, segment_tokens=6))
    await world.run()
    verbs = [order.verb for order in world.orders if order.verb is not Verb.PREPARE]  # beside the others
    assert verbs == [
        Verb.REST, Verb.ONLOAD, Verb.PUBLISH, Verb.SERVE, Verb.REST, Verb.TRAIN, Verb.PUBLISH, Verb.SNAPSHOT,
        Verb.EXPORT, Verb.SERVE, Verb.REST, Verb.EXIT, Verb.EXIT,
    ]  # fmt: skip
    assert len({order.key for order in world.orders}) >= len(world.orders) - 1  # EXIT goes to both halves under one key


async def test_where_memory_is_shared_engines_come_up_only_after_the_trainer_has_left(tmp_path: Path) -> None:
    world = World(tmp_path, iterations=1, moves_memory=True, sampling=replace(settings().sampling, segment_tokens=6))
    await world.run()
    assert [order.verb for order in world.orders] == [
        Verb.REST, Verb.ONLOAD, Verb.PUBLISH, Verb.OFFLOAD, Verb.PREPARE,
        Verb.SERVE, Verb.REST, Verb.ONLOAD, Verb.TRAIN, Verb.PUBLISH, Verb.SNAPSHOT,
        Verb.REST, Verb.ONLOAD, Verb.EXPORT, Verb.OFFLOAD, Verb.PREPARE, Verb.SERVE, Verb.REST, Verb.EXIT, Verb.EXIT,
    ]  # fmt: skip


async def test_trajectories_cut_at_segments_span_versions(tmp_path: Path) -> None:
    world = World(tmp_path, iterations=5)
    await world.run()
    report = inspect(tmp_path)
    assert report.trajectories_spanning_versions > 0
    assert report.duplicate_tokens == 0


@pytest.mark.parametrize("every", [1, 2])
async def test_a_master_killed_at_any_event_resumes_without_loss_or_repeat(tmp_path: Path, every: int) -> None:
    straight = World(tmp_path / "straight", snapshot_every=every, hybrid_replicas=2)
    await straight.run()
    events = straight.plug.seen
    assert events > 40
    places, cuts = range(0, events, 2 if every == 1 else 5), 0
    for after in places:
        folder = tmp_path / f"cut-{every}-{after}"
        world = World(folder, snapshot_every=every, hybrid_replicas=2)
        world.plug = Plug(after=after)
        try:
            await world.run()  # it may end before: runs differ by some events
        except PowerCut:
            cuts += 1
        world.plug = Plug()
        await world.run()
        report = inspect(folder)
        assert (report.state, report.iterations_committed) == ("Succeeded", 3), after
        assert_sound(world, folder)
    assert cuts > 0.9 * len(places)


async def test_old_trajectories_move_to_files_and_a_master_killed_meanwhile_moves_each_once(tmp_path: Path) -> None:
    straight = World(tmp_path / "straight", iterations=7, keep_iterations=2)
    await straight.run()
    places, cuts = range(straight.plug.seen // 2, straight.plug.seen, 6), 0
    for after in (-1, *places):
        folder = tmp_path / f"cut-{after}"
        world = World(folder, iterations=7, keep_iterations=2)
        if after >= 0:
            world.plug = Plug(after=after)
            try:
                await world.run()  # it may end before: runs differ by some events
            except PowerCut:
                cuts += 1
            world.plug = Plug()
        await world.run()
        report = inspect(folder)
        assert_sound(world, folder)
        moved = pq.read_table(folder / "snapshots" / FOLDER).to_pylist()
        ids = [row["trajectory_id"] for row in moved]
        assert len(set(ids)) == len(ids) == report.trajectories_archived > 0, after
        with closing(open_read_only(folder / "state" / FILE)) as db:
            (tokens,) = db.execute("SELECT coalesce(sum(count), 0) FROM segments WHERE rolled_back = 0").fetchone()
        assert report.tokens == tokens + sum(len(row["tokens"]) for row in moved)
        assert {row["iteration"] for row in moved if row["state"] == "trained"} <= set(range(1, 6)), after
    assert cuts > len(places) // 2


@pytest.mark.parametrize("moves_memory", [False, True])
async def test_a_master_told_to_leave_at_any_event_loses_no_commit_whenever_snapshots_are_due(
    tmp_path: Path, moves_memory: bool
) -> None:
    straight = World(tmp_path / "straight", snapshot_every=100, hybrid_replicas=2, moves_memory=moves_memory)
    await straight.run()
    left = 0
    for after in range(1, straight.plug.seen, 5):
        folder = tmp_path / f"leave-{after}"
        world = World(folder, snapshot_every=100, hybrid_replicas=2, moves_memory=moves_memory)
        ended = await world.run(leave_after=after)
        assert ended is not world.told_to_leave, after
        if not ended:
            left += 1
            before = inspect(folder)
            assert [one.snapshot != "" for one in before.iterations][-1:] in ([], [True]), after
            world.plug = Plug()
            assert await world.run()
        report = inspect(folder)
        assert (report.state, report.iterations_committed, report.line) == ("Succeeded", 3, 1), after
        assert_sound(world, folder)
    assert left > straight.plug.seen // 10, "in most of a run it is taken"


async def test_a_lost_training_half_ends_the_run_and_the_next_start_resumes_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.fail[Verb.TRAIN] = EngineFault("the ranks died")
    with pytest.raises(EngineFault, match="training train"):
        await world.run()
    await world.run()
    assert inspect(tmp_path).iterations_committed == 3
    assert_sound(world, tmp_path)


async def test_a_retryable_fault_of_an_engine_is_retried_under_a_new_key(tmp_path: Path) -> None:
    world = World(tmp_path, iterations=1)
    world.fail[Verb.SERVE] = EngineFault("out of memory")
    await world.run()
    keys = [order.key for order in world.orders if order.verb is Verb.SERVE and order.iteration == 1]
    assert [key[-1] for key in keys] == ["1", "2"]


async def test_a_weights_gap_above_the_limit_fails_the_iteration_and_names_both_versions(tmp_path: Path) -> None:
    world = World(tmp_path, sampling=replace(settings().sampling, segment_tokens=6))
    world.gap = 0.5
    with pytest.raises(WeightsGapError, match=r"trainer holds version 1, the engines served j-hybrid-0: 1"):
        await world.run()
    assert inspect(tmp_path).iterations_committed == 0


async def test_numbers_that_are_not_finite_commit_nothing_and_other_groups_are_trained_next(tmp_path: Path) -> None:
    world = World(tmp_path, sampling=replace(settings().sampling, segment_tokens=6))
    world.fail[Verb.TRAIN] = NumericsError("loss of trajectories 5 are not finite", where="iteration 1, step 2")
    with pytest.raises(NumericsError, match=r"iteration 1, step 2: loss of trajectories 5 are not finite"):
        await world.run()
    report = inspect(tmp_path)
    assert (report.iterations_committed, [one.version for one in report.versions]) == (0, [1])
    assert ("groups_dropped_not_finite", 4) in {(one.name, one.count) for one in report.counters}
    assert [order.verb for order in world.orders].count(Verb.PUBLISH) == 1, "of the first weights alone"
    assert await world.run()
    assert inspect(tmp_path).iterations_committed == 3
    assert_sound(world, tmp_path)


async def test_etcd_away_during_an_iteration_delays_the_commit_and_fails_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.away_during = Verb.TRAIN
    await world.run()
    assert inspect(tmp_path).state == "Succeeded"


async def test_etcd_with_a_full_database_degrades_the_job_which_then_goes_on(tmp_path: Path) -> None:
    server = EtcdServer(tmp_path)
    await server.start()
    store = EtcdStore([server.endpoint], server.tls)
    world = World(tmp_path / "run")
    world.store, seen, tasks = store, [], []

    async def disarm() -> None:
        """Once the job says so, and etcd's version has not moved meanwhile."""
        async with asyncio.timeout(60):
            while world.reporter is None or world.reporter.now.state != "Degraded":
                await asyncio.sleep(0.01)
        seen.append(world.reporter.now.message)
        await no_space(store, on=False)

    async def on_order(order: Command) -> None:
        if order.verb is Verb.TRAIN and not tasks:
            await no_space(store, on=True)
            tasks.append(asyncio.create_task(disarm()))

    world.on_order = on_order
    try:
        await world.run()
        await asyncio.gather(*tasks)
        note = codec.loads(VersionNote, (await store.get(world.keys.version)).value)  # type: ignore[union-attr]
    finally:
        await store.close()
        server.kill()
    report = inspect(tmp_path / "run")
    assert (report.state, report.iterations_committed) == ("Succeeded", 3)
    assert "its database is full (alarm NOSPACE)" in seen[0]
    assert note.version == report.versions[-1].version
    assert_sound(world, tmp_path / "run")


async def test_of_two_pods_the_first_is_commanded_and_each_engine_gets_its_own_copy(tmp_path: Path) -> None:
    world = World(tmp_path, hybrid_replicas=2)
    await world.run()
    told = {(order.verb, pod) for order, pod in zip(world.orders, world.told, strict=True)}
    for verb in (Verb.ONLOAD, Verb.TRAIN, Verb.PUBLISH, Verb.SNAPSHOT, Verb.EXPORT):
        assert {pod for one, pod in told if one is verb} == {"j-hybrid-0"}
    for verb in (Verb.PREPARE, Verb.SERVE, Verb.REST, Verb.EXIT):  # the fake half refuses another pod's copy
        assert {pod for one, pod in told if one is verb} == {"j-hybrid-0", "j-hybrid-1"}
    entry = await world.store.get(world.keys.version)
    assert entry is not None
    note = codec.loads(VersionNote, entry.value)
    assert note.owners == ("training:j-hybrid-0", "training:j-hybrid-1")
    assert {one.name for one in inspect(tmp_path).pods} == {"j-hybrid-0", "j-hybrid-1"}
    assert_sound(world, tmp_path)


async def test_pods_whose_weights_have_gone_apart_end_the_run_and_both_are_named(tmp_path: Path) -> None:
    world = World(tmp_path, hybrid_replicas=2)
    world.apart_from = 2
    with pytest.raises(IntegrityError, match=r"version 2: j-hybrid-0 has the weights .*, j-hybrid-1 has"):
        await world.run()


@pytest.mark.parametrize("tensor", ["w", "v"])
async def test_a_version_that_comes_back_with_other_weights_ends_the_run_unless_its_layout_is_another(
    tmp_path: Path, tensor: str
) -> None:
    world = World(tmp_path)
    world.fail[Verb.TRAIN] = EngineFault("the ranks died")
    with pytest.raises(EngineFault):
        await world.run()
    (before,) = inspect(tmp_path).versions
    world.changed = (1, tensor)
    if tensor == "v":  # as after a change of the parallel sizes
        assert await world.run()
        assert "versions_not_compared" in {one.name for one in inspect(tmp_path).counters}
        return
    with pytest.raises(IntegrityError, match=r"version 1: the books know its weights as \S+, the trainer .* \S+ now;"):
        await world.run()
    assert [one.digest for one in inspect(tmp_path).versions] == [before.digest]


async def test_a_held_out_prompt_that_the_engine_refuses_is_wrong_and_the_run_ends_well(tmp_path: Path) -> None:
    world = World(tmp_path, iterations=1)
    world.refuses = lambda item: item.prompt_tokens == world.held_out[1].tokens and item.group_id < 0
    async with asyncio.timeout(30):
        assert await world.run()
    (evaluation,) = inspect(tmp_path).evaluations
    assert (evaluation.prompts, inspect(tmp_path).state) == (3, "Succeeded")
    assert ("held_out_unanswered", 1) in {(one.name, one.count) for one in inspect(tmp_path).counters}
    assert evaluation.right <= 2 / 3


async def test_an_evaluation_that_fails_comes_after_the_export(tmp_path: Path) -> None:
    world = World(tmp_path, iterations=1)
    world.refuses = lambda item: item.group_id < 0
    async with asyncio.timeout(30):
        with pytest.raises(EngineFault, match=r"all \d+ answers failed, the last one so: refused"):
            await world.run()
    assert (tmp_path / "snapshots" / "export").is_dir()


async def test_a_helping_pod_serves_before_it_gets_work_and_its_segments_carry_its_name(tmp_path: Path) -> None:
    world = World(tmp_path, iterations=8)
    world.helpers = ("p-rollout-0",)
    await world.run()
    pods = {one.name: one.count for one in inspect(tmp_path).pods}
    assert set(pods) == {"j-hybrid-0", "p-rollout-0"}
    verbs = [order.verb for order, pod in zip(world.orders, world.told, strict=True) if pod == "p-rollout-0"]
    assert set(verbs) == {Verb.SERVE, Verb.EXIT}
    assert_sound(world, tmp_path)


async def test_a_helping_pod_that_fails_or_vanishes_at_any_event_costs_no_iteration_and_no_token(
    tmp_path: Path,
) -> None:
    for after in range(2, 60, 4):
        world = World(tmp_path / str(after), iterations=3)
        world.helpers = ("p-rollout-0", "p-rollout-1")
        world.leaves_after = (after, "p-rollout-1")
        await world.run()
        report = inspect(tmp_path / str(after))
        assert (report.state, report.iterations_committed) == ("Succeeded", 3), after
        assert_sound(world, tmp_path / str(after))


async def test_a_helping_half_that_never_answers_is_not_waited_for(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.helpers = world.silent = ("p-rollout-0",)
    async with asyncio.timeout(30):
        await world.run()
    assert {one.name for one in inspect(tmp_path).pods} == {"j-hybrid-0"}


async def test_engines_that_refuse_everything_end_the_phase(tmp_path: Path) -> None:
    world = World(tmp_path, iterations=1)
    world.refuses = lambda item: True
    async with asyncio.timeout(30):
        with pytest.raises(EngineFault, match=r"all \d+ answers failed, the last one so: refused"):
            await world.run()


class Broken:
    """A reward that fails for all answers."""

    def __init__(self) -> None:
        self.asked = 0

    def score(self, prompt: Prompt, answer_text: str) -> Verdict:
        self.asked += 1
        return masked(f"r: answer {self.asked} cannot be judged")


async def test_a_run_of_which_no_answer_can_be_scored_ends_with_the_first_reason_and_keeps_them(tmp_path: Path) -> None:
    world = World(tmp_path, sampling=replace(settings().sampling, segment_tokens=6))
    world.reward = Broken()
    with pytest.raises(
        InputError, match=r"^reward: not one of \d+ answers could be scored; the first: r: answer \d+ cannot be judged"
    ) as caught:
        await world.run()
    assert exit_code(caught.value) == 2, "no restart mends it"
    failed = inspect(tmp_path)
    assert (failed.iterations_committed, failed.prompts_trained) == (0, 0)
    world.reward = LengthReward()
    await world.run()
    report = inspect(tmp_path)
    assert report.iterations_committed == 3
    assert "groups_dropped_masked" not in {one.name for one in report.counters}
    assert report.versions[0].tokens == failed.versions[0].tokens, "what was generated is judged, not made again"
    assert_sound(world, tmp_path)


CHANGES: dict[str, dict[str, object]] = {
    "groupSize": {"group_size": 5},
    "groupSize, fewer": {"group_size": 2},
    "groupsPerIteration": {"groups_per_iteration": 2},
    "groupsInFlight": {"groups_in_flight": 1, "groups_per_iteration": 1},
    "maxTokens": {"sampling": {"max_tokens": 2}},
    "maxTokens, more": {"sampling": {"max_tokens": 12}},
    "segmentTokens": {"sampling": {"segment_tokens": 1}},
    "temperature": {"sampling": {"temperature": 0.5}},
    "topP": {"sampling": {"top_p": 0.5}},
    "maxSegmentAge": {"max_segment_age": 1},
    "baseline": {"baseline": Baseline.LOG_MEAN_EXP, "tau": 0.5},
    "penalty": {"repeat_penalty": 0.5},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_run_goes_on_with_what_was_changed_while_it_was_stopped_at_any_event(
    tmp_path: Path, change: dict[str, object]
) -> None:
    first: dict[str, object] = {"group_size": 3, "snapshot_every": 100, "iterations": 4}
    straight = World(tmp_path / "straight", **first)
    await straight.run()
    stopped = 0
    for after in (straight.plug.seen // 2, straight.plug.seen * 3 // 4):
        folder = tmp_path / str(after)
        world = World(folder, **first, recorded='{"rollout": {"temperature": "1"}}')
        if await world.run(leave_after=after):
            continue
        before = inspect(folder)
        sampling = replace(settings().sampling, **change.get("sampling", {}))  # type: ignore[arg-type]
        recorded = json.dumps({"rollout": {"temperature": str(sampling.temperature), "change": str(change)}})
        world.settings = replace(world.settings, **change | {"sampling": sampling}, recorded=recorded)  # type: ignore[arg-type]
        world.plug = Plug()
        await world.run()
        report = inspect(folder)
        assert (report.state, report.iterations_committed) == ("Succeeded", 4)
        assert_sound(world, folder)
        if not 0 < before.iterations_committed < 4:
            continue
        stopped += 1
        assert {one.iteration for one in report.settings_changes} == {before.iterations_committed + 1}
        if sampling.temperature != 1.0:  # what was drawn otherwise is of another version, with the same weights
            drawn = before.versions[-1].version
            assert (drawn + 1, before.iterations_committed) in {(one.version, one.iteration) for one in report.versions}
        with contextlib.closing(sqlite3.connect(folder / "state" / "books.sqlite")) as db:
            sizes = {size for (size,) in db.execute("SELECT DISTINCT size FROM groups")}
            assert sizes <= {3, world.settings.group_size}
    assert stopped


class LateNowAndThen:
    """A scorer whose process is ended in every fourth case."""

    at_once = 3

    def __init__(self) -> None:
        self.asked = 0

    async def score(self, prompt: Prompt, answer: str) -> Verdict:
        self.asked += 1
        if self.asked % 4 == 0:
            raise Lost("reward: no answer within 1 s", late=self.asked % 8 == 0)
        return Verdict(reward=self.asked % 2, correct=False)


async def test_answers_whose_judge_was_ended_are_left_out_and_counted(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.scorer = LateNowAndThen()
    await world.run()
    counts = {one.name: one.count for one in inspect(tmp_path).counters}
    assert counts["judges_late"] >= 1
    assert counts["judges_late"] + counts["judges_ended"] == counts["trajectories_masked"]
    assert_sound(world, tmp_path)


class Hanging:
    """A scorer that judges some answers and then hangs; `told` is called when it does."""

    at_once = 2

    def __init__(self, told: Callable[[], None]) -> None:
        self.told, self.asked = told, 0

    async def score(self, prompt: Prompt, answer: str) -> Verdict:
        self.asked += 1
        if self.asked > 5:
            asyncio.get_running_loop().call_later(0.2, self.told)
            await asyncio.Event().wait()
        return Verdict(reward=self.asked % 2, correct=False)


async def test_a_planned_stop_does_not_wait_for_a_judge_and_the_next_start_judges(tmp_path: Path) -> None:
    world = World(tmp_path, snapshot_every=100)
    world.scorer = Hanging(lambda: world.plug.tell and world.plug.tell())
    async with asyncio.timeout(20):
        assert not await world.run()
    before = inspect(tmp_path)
    assert "trajectories_masked" not in {one.name for one in before.counters}, "they wait for a verdict"
    world.scorer, world.plug = None, Plug()
    assert await world.run()
    assert (inspect(tmp_path).state, inspect(tmp_path).iterations_committed) == ("Succeeded", 3)
    assert_sound(world, tmp_path)


def assert_sound(world: World, folder: Path) -> None:
    """What must hold after any run: every prompt once, no token twice, and the weights saw what the books say."""
    report = inspect(folder)
    assert report.trained_twice_in_a_pass == report.duplicate_tokens == report.chains_broken == 0
    assert len(world.trainer.trained) == sum(one.samples for one in report.iterations)
    trained = Counter(line.split(":")[0] for line in world.trainer.trained)
    assert trained == Counter({str(one.iteration): one.samples for one in report.iterations if one.samples})
