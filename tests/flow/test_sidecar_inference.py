"""The inference half with real child processes: a fake standby that forks fake engines, a worker that sleeps."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from twinpod.checkpoint.fetch import Stager
from twinpod.checkpoint.manifest import manifest_path, read_manifest
from twinpod.checkpoint.shard_offers import ShardOffers
from twinpod.errors import EXIT_INPUT, StaleEpoch
from twinpod.records.life import LifeCycle, Verb
from twinpod.records.weights import ServeRequest, ShardSource, WeightVersion
from twinpod.testing.carriers import FakeCarrier
from twinpod.testing.halves import FAKE_ENGINE, FAKE_STANDBY, FakeDevices, InferenceBench, kill_now, order, processes
from twinpod.testing.weights import small_version, spoil
from twinpod_sidecar import machine


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[InferenceBench]:
    async with InferenceBench(tmp_path) as running:
        yield running


def announced(bench: InferenceBench) -> dict[str, object]:
    return json.loads(bench.settings.engine_file.read_text())


async def test_prepare_serve_and_rest_go_round_twice(bench: InferenceBench) -> None:
    for number in (1, 2):
        version = small_version(bench.folder / "shm", number)
        assert (await bench.do(order(Verb.PREPARE, number))).error == ""
        reply = await bench.serve(version, number)
        assert reply.error == ""
        assert set(json.loads(reply.detail)) == {"start_s", "fetch_s", "fetch_bytes", "verify_s", "load_s"}
        assert announced(bench)["version"] == number == bench.half.status().version
        assert (await bench.do(order(Verb.REST, number))).error == ""
        assert processes(FAKE_ENGINE) == []
        assert not bench.settings.engine_file.exists()


async def test_serve_alone_starts_an_engine(bench: InferenceBench) -> None:
    assert (await bench.serve(small_version(bench.folder / "shm", 3))).error == ""
    assert len(processes(FAKE_ENGINE)) == 1


async def test_serving_the_same_version_again_changes_nothing(bench: InferenceBench) -> None:
    version = small_version(bench.folder / "shm", 1)
    await bench.serve(version, 1)
    before = announced(bench), processes(FAKE_ENGINE)
    assert (await bench.serve(version, 2)).error == ""
    assert (announced(bench), processes(FAKE_ENGINE)) == before


async def test_a_newer_version_is_served_without_a_new_engine(bench: InferenceBench) -> None:
    await bench.serve(small_version(bench.folder / "shm", 1), 1)
    engines = processes(FAKE_ENGINE)
    assert (await bench.serve(small_version(bench.folder / "shm", 2), 2)).error == ""
    assert announced(bench)["version"] == 2
    assert processes(FAKE_ENGINE) == engines


async def test_a_lying_shard_is_named_with_both_digests_and_nothing_is_served(bench: InferenceBench) -> None:
    version = small_version(bench.folder / "shm", 5)
    spoil(version, 1)
    reply = await bench.serve(version)
    assert reply.error.startswith("IntegrityError: version 5, shard hybrid-0/rank-1: ")
    assert version.shards[1].digest in reply.error
    assert reply.error.count("xxh3:") == 2
    assert not reply.retryable
    assert not bench.settings.engine_file.exists()
    assert bench.half.status().version == 0


async def test_a_version_whose_arena_is_not_here_is_refused(bench: InferenceBench) -> None:
    version = small_version(bench.folder / "shm", 1)
    os.unlink(version.shards[0].path)
    assert "is not in this pod" in (await bench.serve(version)).error


def away(bench: InferenceBench, number: int, **more: int) -> WeightVersion:
    """A version of another pod, offered there."""
    folder = bench.folder / "peer"
    folder.mkdir(exist_ok=True)
    version = small_version(folder, number, address="peer:7401", **more)
    bench.carrier.shelves.setdefault("peer:7401", ShardOffers()).offer(number, version.shards)
    return version


async def test_a_version_of_another_pod_is_fetched_and_served_and_then_given_to_peers(bench: InferenceBench) -> None:
    version = away(bench, 3)
    reply = await bench.serve(version)
    assert reply.error == ""
    detail = json.loads(reply.detail)
    size = sum(max(part.offset + part.nbytes for part in shard.layout.parts) for shard in version.shards)
    assert detail["fetch_bytes"] == size
    assert detail["fetch_s"] > 0
    assert announced(bench)["version"] == 3
    manifest = read_manifest(manifest_path(bench.folder / "shm", 3))
    assert {Path(shard.path).parent for shard in manifest.shards} == {bench.folder / "shm"}
    assert {shard.address for shard in manifest.shards} == {"localhost:7402"}
    second = Stager(bench.folder, "third:7402", FakeCarrier(), ShardOffers())
    second.carrier.shelves["localhost:7402"] = bench.offers  # type: ignore[attr-defined]
    sources = tuple(ShardSource(owner=one.layout.owner, addresses=("localhost:7402",)) for one in version.shards)
    assert (await second.stage(ServeRequest(weights=version, sources=sources))).nbytes == size
    assert (await bench.serve(small_version(bench.folder / "shm", 4), 4)).error == ""
    assert json.loads((await bench.serve(small_version(bench.folder / "shm", 4), 5)).detail)["fetch_bytes"] == 0


async def test_weights_that_nobody_gives_are_a_retryable_answer_and_nothing_older_goes_on_being_served(
    bench: InferenceBench,
) -> None:
    await bench.serve(small_version(bench.folder / "shm", 1), 1)
    version = away(bench, 2)
    bench.carrier.shelves.clear()
    reply = await bench.serve(version, 2)
    assert reply.error.startswith("Unreachable: version 2, shard hybrid-0/rank-")
    assert "peer:7401: does not answer" in reply.error
    assert reply.retryable
    assert not bench.settings.engine_file.exists()
    assert bench.half.status().version == 0
    bench.carrier.shelves["peer:7401"] = ShardOffers()
    bench.carrier.shelves["peer:7401"].offer(2, version.shards)
    assert (await bench.serve(version, 3)).error == ""
    assert announced(bench)["version"] == 2


async def test_a_newer_order_cuts_a_fetch_that_hangs(bench: InferenceBench) -> None:
    old = away(bench, 1)
    bench.carrier.hangs.add("peer:7401")
    serve = asyncio.create_task(bench.serve(old, 1))
    await bench.news.until(lambda: bool(bench.carrier.asked))
    bench.carrier.hangs.clear()
    assert (await bench.serve(away(bench, 2), 2)).error == ""
    assert "gave way to" in (await serve).error
    assert announced(bench)["version"] == 2


@pytest.mark.parametrize("verb", [Verb.REST, Verb.EXIT])
async def test_rest_and_exit_cut_a_fetch_that_hangs(tmp_path: Path, verb: Verb) -> None:
    async with InferenceBench(tmp_path) as bench:
        version = away(bench, 1)
        bench.carrier.hangs.add("peer:7401")
        serve = asyncio.create_task(bench.serve(version, 1))
        await bench.news.until(lambda: bool(bench.carrier.asked))
        assert (await bench.do(order(verb))).error == ""
        assert "gave way to" in (await serve).error
        assert not bench.settings.engine_file.exists()
        if verb is Verb.REST:
            bench.carrier.hangs.clear()
            assert (await bench.serve(version, 2)).error == ""


async def test_a_version_whose_parts_leave_a_gap_is_refused(bench: InferenceBench) -> None:
    whole = small_version(bench.folder / "shm", 1)
    lacking = replace(whole, shards=whole.shards[:1])
    reply = await bench.serve(lacking)
    assert reply.error.startswith("ProtocolError: version 1: cut.weight lacks rows 4 to 7")


async def test_an_argument_that_is_no_version_is_refused(bench: InferenceBench) -> None:
    reply = await bench.do(order(Verb.SERVE, argument="{}"))
    assert reply.error.startswith("ProtocolError: ServeOrder: missing fields")


async def test_the_same_key_gets_the_same_answer_and_is_executed_once(bench: InferenceBench) -> None:
    first = await bench.do(order(Verb.PREPARE))
    engines = processes(FAKE_ENGINE)
    await bench.do(order(Verb.REST))
    assert await bench.do(order(Verb.PREPARE)) == first
    assert engines
    assert processes(FAKE_ENGINE) == []


async def test_an_older_epoch_is_refused(bench: InferenceBench) -> None:
    await bench.do(order(Verb.REST, epoch=2))
    with pytest.raises(StaleEpoch, match="epoch 1 is over"):
        await bench.do(order(Verb.REST, epoch=1))


async def test_an_engine_killed_while_serving_is_replaced_and_serves_the_same_version(bench: InferenceBench) -> None:
    await bench.serve(small_version(bench.folder / "shm", 4))
    old = announced(bench)
    kill_now(FAKE_ENGINE)
    await bench.news.until(lambda: bench.half.status().attempt == 1)
    await bench.news.until(lambda: bench.state == "serving")
    new = announced(bench)
    assert new["version"] == 4
    assert new["urls"] != old["urls"]
    assert new["api_key"] != old["api_key"]


@pytest.mark.parametrize(("hold", "state"), [("start", "starting"), ("load", "loading")])
async def test_an_engine_killed_on_its_way_is_replaced(bench: InferenceBench, hold: str, state: str) -> None:
    bench.kind.behaviours = [{"hold": hold}]
    version = small_version(bench.folder / "shm", 1)
    task = asyncio.create_task(bench.serve(version))
    await bench.news.until(lambda: bench.state == state and len(processes(FAKE_ENGINE)) == 1)
    kill_now(FAKE_ENGINE)
    assert (await task).error == ""
    assert bench.half.status().attempt == 1


async def test_an_engine_killed_while_idle_is_gone_until_it_is_wanted(bench: InferenceBench) -> None:
    await bench.do(order(Verb.PREPARE, 1))
    kill_now(FAKE_ENGINE)
    await bench.news.until(lambda: bench.half.status().attempt == 1)
    assert (await bench.serve(small_version(bench.folder / "shm", 1))).error == ""


async def test_a_standby_killed_while_it_stops_an_engine_leaves_the_next_engine_alone(bench: InferenceBench) -> None:
    await bench.serve(small_version(bench.folder / "shm", 1))
    (standby,) = processes(FAKE_STANDBY)
    os.kill(standby, signal.SIGSTOP)
    rest = asyncio.create_task(bench.do(order(Verb.REST)))
    await bench.news.until(lambda: bench.state == "stopping")
    os.kill(standby, signal.SIGKILL)
    assert (await rest).error == ""
    assert (await bench.do(order(Verb.PREPARE, 2))).error == ""
    tried_again = asyncio.get_running_loop().time() + machine.pause(2) + 0.5  # whoever was stopping the first engine
    await bench.news.until(lambda: asyncio.get_running_loop().time() > tried_again)
    reply = await bench.serve(small_version(bench.folder / "shm", 2), 2, deadline_s=10.0)
    assert reply.error == ""


async def test_a_standby_killed_takes_its_engine_along_and_both_come_back(bench: InferenceBench) -> None:
    await bench.serve(small_version(bench.folder / "shm", 2))
    (engine,) = processes(FAKE_ENGINE)
    kill_now(FAKE_STANDBY)
    await bench.news.until(lambda: bench.half.status().attempt == 1)
    await bench.news.until(lambda: bench.state == "serving")
    assert announced(bench)["version"] == 2
    assert engine not in processes(FAKE_ENGINE)


def seen_now(seen: list[int], word: str) -> list[int]:
    seen[:] = processes(word)
    return seen


async def test_a_worker_killed_is_started_again(bench: InferenceBench) -> None:
    seen: list[int] = []  # in the act of an exec a process has no command line
    await bench.news.until(lambda: len(seen_now(seen, "sleep")) == 1)
    os.kill(seen[0], signal.SIGKILL)
    await bench.news.until(lambda: processes("sleep") not in ([], seen))


async def test_a_worker_that_finds_the_input_wrong_ends_the_half_with_code_2(tmp_path: Path) -> None:
    worker = ("sh", "-c", "echo 'twinpod.rollout: spec: is wrong' >&2; exit 2")
    bench = InferenceBench(tmp_path, worker=worker)
    assert await asyncio.wait_for(bench.half.run(), 30) == EXIT_INPUT
    assert processes("") == []


async def test_an_engine_that_never_comes_up_is_an_answer_with_its_last_words(bench: InferenceBench) -> None:
    bench.kind.behaviours = [{"die": "twinpod: no such model"}] * 3
    reply = await bench.do(order(Verb.PREPARE))
    assert reply.error == ("EngineFault: the engine exited with code 1; its last words: twinpod: no such model")
    assert reply.retryable
    assert (await bench.do(order(Verb.PREPARE, 1))).error == ""


async def test_an_engine_that_serves_another_version_than_asked_for_is_replaced(bench: InferenceBench) -> None:
    bench.kind.behaviours = [{"lie": "77"}]
    assert (await bench.serve(small_version(bench.folder / "shm", 1))).error == ""
    assert bench.half.status().attempt == 1


async def test_an_engine_that_refuses_to_load_is_replaced_and_at_last_reported(bench: InferenceBench) -> None:
    bench.kind.behaviours = [{"refuse": "/update_weights_from_tensor"}] * 3
    reply = await bench.serve(small_version(bench.folder / "shm", 1))
    assert "refused, as the test wants" in reply.error
    assert reply.retryable
    await bench.news.until(lambda: processes(FAKE_ENGINE) == [])


async def test_a_deadline_is_an_answer_that_says_what_it_waits_for(bench: InferenceBench) -> None:
    await bench.do(order(Verb.PREPARE, 1))  # the standby is up
    await bench.do(order(Verb.REST))
    bench.kind.behaviours = [{"hold": "start"}]
    reply = await bench.do(order(Verb.PREPARE, deadline_s=0.3))
    assert "prepare not done within 0.3 s; the engine is starting" in reply.error
    assert reply.retryable


async def test_rest_interrupts_a_start(bench: InferenceBench) -> None:
    bench.kind.behaviours = [{"hold": "start"}]
    prepare = asyncio.create_task(bench.do(order(Verb.PREPARE)))
    await bench.news.until(lambda: len(processes(FAKE_ENGINE)) == 1)
    assert (await bench.do(order(Verb.REST))).error == ""
    assert "gave way to" in (await prepare).error
    assert processes(FAKE_ENGINE) == []


async def test_exit_leaves_no_process_behind(tmp_path: Path) -> None:
    async with InferenceBench(tmp_path) as bench:
        await bench.serve(small_version(tmp_path / "shm", 1))
        assert (await bench.do(order(Verb.EXIT))).error == ""
    assert processes("") == []


async def test_at_sigterm_the_worker_says_farewell_while_the_engine_still_serves(tmp_path: Path) -> None:
    farewell = f"cp {tmp_path}/run/engine.json {tmp_path}/farewell; exit 0"
    worker = ("sh", "-c", f"trap '{farewell}' TERM; touch {tmp_path}/up; sleep 1000 & wait")
    async with InferenceBench(tmp_path, worker=worker) as bench:
        await bench.serve(small_version(tmp_path / "shm", 1))
        await bench.news.until((tmp_path / "up").exists)
        bench.half.terminate()
    assert json.loads((tmp_path / "farewell").read_text())["version"] == 1
    assert processes("") == []


async def test_sigterm_in_the_middle_of_a_load_leaves_no_process_behind(tmp_path: Path) -> None:
    async with InferenceBench(tmp_path) as bench:
        bench.kind.behaviours = [{"hold": "load"}]
        serve = asyncio.create_task(bench.serve(small_version(tmp_path / "shm", 1)))
        await bench.news.until(lambda: bench.state == "loading")
        bench.half.terminate()
        assert "told to end" in (await serve).error
    assert processes("") == []


@pytest.mark.parametrize("life", [LifeCycle.KEEP, LifeCycle.SLEEP])
async def test_an_engine_that_is_kept_or_sleeps_is_the_same_process_again(tmp_path: Path, life: LifeCycle) -> None:
    async with InferenceBench(tmp_path, life) as bench:
        await bench.serve(small_version(tmp_path / "shm", 1), 1)
        (engine,) = processes(FAKE_ENGINE)
        assert (await bench.do(order(Verb.REST))).error == ""
        assert bench.state == ("idle" if life is LifeCycle.KEEP else "asleep")
        assert not bench.settings.engine_file.exists()
        await bench.do(order(Verb.PREPARE))
        assert (await bench.serve(small_version(tmp_path / "shm", 2), 2)).error == ""
        assert processes(FAKE_ENGINE) == [engine]


async def test_an_engine_killed_while_asleep_is_replaced_when_wanted(tmp_path: Path) -> None:
    async with InferenceBench(tmp_path, LifeCycle.SLEEP) as bench:
        await bench.serve(small_version(tmp_path / "shm", 1), 1)
        await bench.do(order(Verb.REST))
        kill_now(FAKE_ENGINE)
        await bench.news.until(lambda: bench.state == "none")
        assert (await bench.serve(small_version(tmp_path / "shm", 1), 2)).error == ""


async def test_an_engine_killed_while_it_releases_its_memory_counts_as_rested(tmp_path: Path) -> None:
    async with InferenceBench(tmp_path, LifeCycle.SLEEP) as bench:
        bench.kind.behaviours = [{"hold": "release"}]
        await bench.serve(small_version(tmp_path / "shm", 1))
        rest = asyncio.create_task(bench.do(order(Verb.REST)))
        await bench.news.until(lambda: bench.state == "stopping")
        kill_now(FAKE_ENGINE)
        assert (await rest).error == ""


async def test_the_engines_of_a_pod_start_load_and_die_together(tmp_path: Path) -> None:
    async with InferenceBench(tmp_path, engines=2) as bench:
        assert (await bench.serve(small_version(bench.folder / "shm", 4))).error == ""
        first = announced(bench)
        assert len(set(first["urls"])) == len(processes(FAKE_ENGINE)) == 2
        one, two = processes(FAKE_ENGINE)
        os.kill(one, signal.SIGKILL)
        await bench.news.until(lambda: bench.half.status().attempt == 1)
        await bench.news.until(lambda: bench.state == "serving")
        assert len(processes(FAKE_ENGINE)) == 2
        assert not {one, two} & set(processes(FAKE_ENGINE))
        assert not set(announced(bench)["urls"]) & set(first["urls"])
        assert (await bench.do(order(Verb.REST))).error == ""
        assert processes(FAKE_ENGINE) == []


async def test_one_engine_of_two_that_does_not_load_leaves_none_serving(tmp_path: Path) -> None:
    async with InferenceBench(tmp_path, engines=2) as bench:
        bench.kind.behaviours = [{}, {"lie": "9"}] * machine.GIVE_UP
        reply = await bench.serve(small_version(bench.folder / "shm", 4))
        assert "asked for weights 4, the engine serves 9" in reply.error
        await bench.news.until(lambda: processes(FAKE_ENGINE) == [])


@pytest.mark.parametrize(
    ("ready", "start"),
    [({}, "fork"), ({"threads": 3}, "spawn"), ({"accelerator": True}, "spawn"), ({"imported": False}, "spawn")],
)
async def test_engines_are_forked_only_where_a_fork_lives(
    tmp_path: Path, ready: dict[str, object], start: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with InferenceBench(tmp_path, ready=ready) as bench:
        assert (await bench.do(order(Verb.PREPARE))).error == ""
        assert len(processes(f'"start": "{start}"')) == 1
    assert ("engines are executed anew, not forked" in caplog.text) == (start == "spawn")


async def test_an_engine_starts_only_when_the_devices_are_free(tmp_path: Path) -> None:
    devices = FakeDevices(10.0, 78.0)
    async with InferenceBench(tmp_path, devices=devices, ready={"platform": ""}) as bench:
        assert (await bench.do(order(Verb.PREPARE))).error == ""
        assert devices.looks == 2


async def test_devices_that_stay_full_start_no_engine_and_are_told(tmp_path: Path) -> None:
    async with InferenceBench(tmp_path, devices=FakeDevices(10.0), ready={"platform": ""}) as bench:
        reply = await bench.do(order(Verb.PREPARE))
        assert "needs 74.0 GiB of 80.0, 10.0 are free after 0.3 s" in reply.error
        assert reply.retryable
        assert processes(FAKE_ENGINE) == []


async def test_an_engine_that_slept_takes_its_memory_only_when_it_is_free(tmp_path: Path) -> None:
    devices = FakeDevices(80.0, 10.0, 70.0, 78.0)
    async with InferenceBench(tmp_path, LifeCycle.SLEEP, devices=devices, ready={"platform": ""}) as bench:
        await bench.do(order(Verb.PREPARE))
        await bench.do(order(Verb.REST))
        assert (await bench.do(order(Verb.PREPARE, 2))).error == ""
        assert devices.looks == 4
