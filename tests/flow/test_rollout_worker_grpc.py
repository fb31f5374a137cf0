"""The worker against a master behind real gRPC with mutual TLS, and a real file for word of the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from twinpod.records.arrays import TokenIds
from twinpod.records.rollout import Resumption, SamplingSettings, Stop, WorkItem
from twinpod.rollout.__main__ import GrpcMaster
from twinpod.rollout.engine_file import EngineFile
from twinpod.rollout.worker import Worker, WorkerSettings
from twinpod.rpc.certificates import issue, make_authority
from twinpod.rpc.channel import client_channel, serve
from twinpod.rpc.convert import pull_from_pb, work_batch_to_pb, work_result_from_pb
from twinpod.rpc.v1 import master_pb2, master_pb2_grpc
from twinpod.testing.rollout import FakeEngine, FakeMaster

SETTINGS = SamplingSettings(
    temperature=1, top_p=1, segment_tokens=8, max_tokens=8, stop_token_ids=(1,), repeat_ngram=0, repeat_count=0
)
QUICK = WorkerSettings(capacity=64, pull_wait_s=0.05, retry_s=0.01, retry_most_s=0.05)


def item(number: int, k: int = 16) -> WorkItem:
    return WorkItem(
        item_id=f"1/1/{number}",
        group_id=number,
        version=3,
        prompt_tokens=TokenIds((40 + number, 2)),
        trajectories=tuple(Resumption(trajectory_id=number * 100 + n, index=0, tokens=TokenIds()) for n in range(k)),
        sampling=SETTINGS,
        seed=0,
    )


class Service(master_pb2_grpc.MasterServicer):
    """The fake master behind the wire."""

    def __init__(self, master: FakeMaster) -> None:
        self.master = master

    async def PullWork(self, request: Any, context: Any) -> Any:
        return work_batch_to_pb(await self.master.pull(pull_from_pb(request)))

    async def ReturnWork(self, request: Any, context: Any) -> Any:
        await self.master.give(request.epoch, [work_result_from_pb(result) for result in request.results])
        return master_pb2.ReturnReply(stored=sum(len(result.segments) for result in request.results))


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    issue(make_authority("job"), ["localhost"], ["127.0.0.1"]).write(tmp_path / "tls")
    return tmp_path / "tls"


def announce(path: Path, version: int, port: int = 1) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"urls": [f"http://127.0.0.1:{port}"], "api_key": "k", "version": version}))
    part.rename(path)


@asynccontextmanager
async def working(port: int, tls: Path, file: Path, engine: FakeEngine) -> AsyncIterator[None]:
    stop = asyncio.Event()
    async with client_channel(f"127.0.0.1:{port}", tls) as channel:
        source = EngineFile(file, lambda serving: engine, every_s=0.002)
        worker = Worker("pod-a", GrpcMaster(channel, "master"), source, QUICK)
        task = asyncio.create_task(worker.run(stop))
        try:
            yield
        finally:
            stop.set()
            await asyncio.wait_for(task, 5)


async def until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


async def test_work_goes_over_the_wire_and_comes_back_whole(tls, tmp_path):
    master = FakeMaster([item(n) for n in range(8)], version=3)
    engine = FakeEngine(lambda request: (request.tokens[0], 5, 1), version=3)
    server = await serve([Service(master)], "127.0.0.1:0", tls)
    async with working(server.port, tls, tmp_path / "engine.json", engine):
        announce(tmp_path / "engine.json", 3)
        results = await asyncio.wait_for(master.returned(8), 10)
    await server.stop()
    segments = [segment for result in results for segment in result.segments]
    assert sorted(s.trajectory_id for s in segments) == [n * 100 + k for n in range(8) for k in range(16)]
    assert {(s.tokens[0] - 40 == s.trajectory_id // 100, tuple(s.logps), s.stop, s.version) for s in segments} == {
        (True, (-0.5, -0.5, -0.5), Stop.EOS, 3)
    }


async def test_a_master_that_goes_away_gets_the_results_when_it_is_back(tls, tmp_path):
    master = FakeMaster([item(0), item(1)], version=3)
    engine = FakeEngine(lambda request: (5, 6, 7, 1), version=3, limit=2)
    server = await serve([Service(master)], "127.0.0.1:0", tls)
    announce(tmp_path / "engine.json", 3)
    async with working(server.port, tls, tmp_path / "engine.json", engine):
        await until(lambda: len(engine.requests) == 32)
        await server.stop()
        await engine.allow(99)
        server = await serve([Service(master)], f"127.0.0.1:{server.port}", tls)
        results = await asyncio.wait_for(master.returned(2), 20)
        assert {tuple(s.tokens) for r in results for s in r.segments} == {(5, 6, 7, 1)}
        assert len(engine.requests) == 32
        await master.change(items=[item(2)])
        await asyncio.wait_for(master.returned(3), 20)
    await server.stop()


async def test_a_cut_and_the_next_version(tls, tmp_path):
    master = FakeMaster([item(0)], version=3)
    engine = FakeEngine(lambda request: (5, 6, 7, 1), version=3, limit=2)
    server = await serve([Service(master)], "127.0.0.1:0", tls)
    file = tmp_path / "engine.json"
    announce(file, 3)
    async with working(server.port, tls, file, engine):
        await until(lambda: len(engine.requests) == 16)
        await master.change(cut=True)
        results = await asyncio.wait_for(master.returned(1), 10)
        assert {(tuple(s.tokens), s.stop) for r in results for s in r.segments} == {((5, 6), Stop.CUT)}
        file.unlink()
        await master.change(cut=False)
        pulls = len(master.pulls)
        engine.version = 4
        announce(file, 4, port=2)
        await until(lambda: len(master.pulls) > pulls)
        await until(lambda: master.pulls[-1].version == 4)
    await server.stop()


async def test_who_has_no_certificate_of_the_job_gets_no_work(tls, tmp_path):
    server = await serve([Service(FakeMaster([item(0)]))], "127.0.0.1:0", tls)
    issue(make_authority("another job"), ["localhost"], ["127.0.0.1"]).write(tmp_path / "other")
    (tmp_path / "other" / "ca.crt").write_bytes((tls / "ca.crt").read_bytes())
    async with client_channel(f"127.0.0.1:{server.port}", tmp_path / "other") as channel:
        stub: Any = master_pb2_grpc.MasterStub(channel)
        with pytest.raises(grpc.RpcError):
            await stub.PullWork(master_pb2.PullRequest(worker="w"), timeout=5)
    await server.stop()
