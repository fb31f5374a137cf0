"""The training half with a real process for rank 0, over real gRPC."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from twinpod.api import names
from twinpod.arena.layouts import reference, write_layout
from twinpod.errors import EXIT_FAULT, EXIT_INPUT, WrongVersion
from twinpod.records import codec
from twinpod.records.life import Reply, Verb
from twinpod.records.weights import ShardRequest
from twinpod.rpc.certificates import issue, make_authority
from twinpod.rpc.channel import ask, client_channel, serve
from twinpod.rpc.convert import command_to_pb, reply_from_pb
from twinpod.rpc.ports import free_port
from twinpod.rpc.v1 import half_pb2_grpc
from twinpod.testing.halves import FAKE_RANKS, TrainingBench, kill_now, order, processes
from twinpod.testing.weights import small_version
from twinpod_sidecar.service import HalfService
from twinpod_sidecar.training import TrainerLink


class Running:
    def __init__(self, bench: TrainingBench, stub: half_pb2_grpc.HalfStub, task: asyncio.Task[int]) -> None:
        self.half, self.news, self._stub, self.task = bench.half, bench.news, stub, task
        self.offers = bench.offers

    async def do(self, verb: Verb, number: int = 0, argument: str = "", deadline_s: float = 60) -> Reply:
        command = command_to_pb(order(verb, number, argument=argument, deadline_s=deadline_s))
        return reply_from_pb(await ask(self._stub.Execute, command, timeout=90, where="half"))


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Running]:
    issue(make_authority("job"), ["localhost"]).write(folder / "tls")
    port = free_port("localhost")
    bench = TrainingBench(folder, f"localhost:{port}")
    server = await serve([HalfService(bench.half), TrainerLink(bench.half, 1)], f"localhost:{port}", folder / "tls")
    task = asyncio.create_task(bench.half.run())
    async with client_channel(f"localhost:{port}", folder / "tls") as channel:
        yield Running(bench, half_pb2_grpc.HalfStub(channel), task)
        bench.half.terminate()
        await task
    await server.stop()
    assert processes(FAKE_RANKS) == []


async def test_commands_reach_rank_0_and_its_reports_come_back(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        for number in range(3):
            reply = await run.do(Verb.TRAIN, number, argument=f"{number}")
            assert (reply.error, reply.detail) == ("", f"{number}")
        assert (await run.do(Verb.PUBLISH, argument="fail")).error == "EngineFault: the test wants it to fail"


async def test_what_the_ranks_of_this_pod_published_is_served_until_its_slot_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "shm").mkdir()
    shards = {number: small_version(tmp_path / "shm", number, ranks=1).shards[0] for number in (1, 2)}
    refs = {number: reference(shard, write_layout(tmp_path / "shm", shard.layout)) for number, shard in shards.items()}
    elsewhere = replace(refs[1], address="hybrid-1:7401", digest="xxh3:0", path="/elsewhere")

    def request(number: int, digest: str = "") -> ShardRequest:
        shard = shards[number]
        return ShardRequest(
            owner=shard.layout.owner,
            version=0,
            digest=digest or shard.digest,
            slot_bytes=shard.layout.slot_bytes,
            begin=0,
            end=1,
        )

    async with running(tmp_path) as run:
        published = json.dumps([codec.plain(refs[1]), codec.plain(elsewhere)])
        await run.do(Verb.PUBLISH, 1, argument=published)
        assert run.offers.find(request(1)) == shards[1]
        with pytest.raises(WrongVersion):
            run.offers.find(request(1, "xxh3:0"))
        await run.do(Verb.PUBLISH, 2, argument=json.dumps([codec.plain(refs[2])]))
        assert run.offers.find(request(1)) == shards[1]
        run.offers.clear_slot(1)
        with pytest.raises(WrongVersion, match="held: 0"):
            run.offers.find(request(1))
        await run.do(Verb.PUBLISH, 3, argument="fail")  # the version of these orders is 0: slot 0 is written
        with pytest.raises(WrongVersion, match="held: nothing"):
            run.offers.find(request(2))


async def test_the_same_key_is_executed_once_also_while_it_runs(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        first, second = await asyncio.gather(run.do(Verb.TRAIN, argument="x"), run.do(Verb.TRAIN, argument="y"))
        assert first == second
        assert await run.do(Verb.TRAIN, argument="z") == first


async def test_exit_ends_the_ranks_and_the_half_with_0(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.do(Verb.TRAIN)
        assert (await run.do(Verb.EXIT)).error == ""
        assert await run.task == 0


async def test_a_rank_that_dies_answers_its_command_and_ends_the_half(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        reply = await run.do(Verb.TRAIN, argument="die")
        assert "exited with code 1; its last words: twinpod: the test wants this rank dead" in reply.error
        assert reply.retryable
        assert await run.task == 1


async def test_a_rank_that_finds_the_input_wrong_ends_the_half_with_code_2(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        reply = await run.do(Verb.TRAIN, argument="refuse")
        assert (reply.error, reply.retryable) == ("InputError: config.json: it is wrong", False)
        assert await run.task == EXIT_INPUT


async def test_what_ranks_of_an_earlier_start_refused_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / names.INPUT_ERROR_FILE).write_text("mended since")
    async with running(tmp_path) as run:
        await run.do(Verb.TRAIN)
        kill_now(FAKE_RANKS)
        assert await run.task == EXIT_FAULT


async def test_a_rank_that_is_killed_while_idle_ends_the_half(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.do(Verb.TRAIN)
        kill_now(FAKE_RANKS)
        assert await run.task == 1
        assert "was killed by SIGKILL" in run.half.status().message


async def test_a_rank_that_hangs_is_ended_at_the_deadline(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.do(Verb.TRAIN)
        reply = await run.do(Verb.TRAIN, 1, argument="hang", deadline_s=3.0)
        assert "the ranks are stuck" in reply.error
        assert reply.retryable
        assert await run.task == 1


@pytest.mark.parametrize("argument", ["", "hang"], ids=["idle", "busy"])
async def test_sigterm_ends_the_ranks_first(tmp_path: Path, argument: str) -> None:
    async with running(tmp_path) as run:
        if argument:
            doing = asyncio.create_task(run.do(Verb.TRAIN, argument=argument))
            await run.news.until(lambda: run.half.status().state == "train")
        else:
            await run.do(Verb.TRAIN)
        run.half.terminate()
        assert await run.task == 0
        if argument:
            assert "told to end" in (await doing).error


async def test_status_tells_what_the_ranks_do(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        assert run.half.status().state == "starting"
        await run.do(Verb.TRAIN)
        assert run.half.status().state == "idle"
