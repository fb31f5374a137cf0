"""Whole runs of the master with fake halves and workers: straight through, and with the plug pulled at every event."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from twinpod.errors import EngineFault, WeightsGapError
from twinpod.master.inspect import inspect, to_json
from twinpod.records.life import Verb
from twinpod.testing.fakes_master import Plug, PowerCut, World, settings


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
        Verb.SERVE, Verb.REST, Verb.EXPORT, Verb.EXIT, Verb.EXIT,
    ]  # fmt: skip
    assert len({order.key for order in world.orders}) >= len(world.orders) - 1  # EXIT goes to both halves under one key


async def test_where_memory_is_shared_engines_come_up_only_after_the_trainer_has_left(tmp_path: Path) -> None:
    world = World(tmp_path, iterations=1, moves_memory=True, sampling=replace(settings().sampling, segment_tokens=6))
    await world.run()
    assert [order.verb for order in world.orders] == [
        Verb.REST, Verb.ONLOAD, Verb.PUBLISH, Verb.OFFLOAD, Verb.PREPARE,
        Verb.SERVE, Verb.REST, Verb.ONLOAD, Verb.TRAIN, Verb.PUBLISH, Verb.SNAPSHOT, Verb.OFFLOAD, Verb.PREPARE,
        Verb.SERVE, Verb.REST, Verb.REST, Verb.ONLOAD, Verb.EXPORT, Verb.EXIT, Verb.EXIT,
    ]  # fmt: skip


async def test_trajectories_cut_at_segments_span_versions(tmp_path: Path) -> None:
    world = World(tmp_path, iterations=5)
    await world.run()
    report = inspect(tmp_path)
    assert report.trajectories_spanning_versions > 0
    assert report.duplicate_tokens == 0


@pytest.mark.parametrize("every", [1, 2])
async def test_a_master_killed_at_any_event_resumes_without_loss_or_repeat(tmp_path: Path, every: int) -> None:
    straight = World(tmp_path / "straight", snapshot_every=every)
    await straight.run(workers=2)
    events = straight.plug.seen
    assert events > 40
    for after in range(0, events, 2 if every == 1 else 5):
        folder = tmp_path / f"cut-{every}-{after}"
        world = World(folder, snapshot_every=every)
        world.plug = Plug(after=after)
        with pytest.raises(PowerCut):
            await world.run(workers=2)
        world.plug = Plug()
        await world.run(workers=2)
        report = inspect(folder)
        assert (report.state, report.iterations_committed) == ("Succeeded", 3), after
        assert_sound(world, folder)


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


async def test_etcd_away_during_an_iteration_delays_the_commit_and_fails_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.away_during = Verb.TRAIN
    await world.run()
    assert inspect(tmp_path).state == "Succeeded"


def assert_sound(world: World, folder: Path) -> None:
    """What must hold after any run: every prompt once, no token twice, and the weights saw what the books say."""
    report = inspect(folder)
    assert report.trained_twice_in_a_pass == report.duplicate_tokens == report.chains_broken == 0
    assert len(world.trainer.trained) == sum(one.samples for one in report.iterations)
    trained = Counter(line.split(":")[0] for line in world.trainer.trained)
    assert trained == Counter({str(one.iteration): one.samples for one in report.iterations if one.samples})
