"""The master's service over real gRPC with mutual TLS, and the real rollout worker against the real dispatcher."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from twinpod.errors import StaleEpoch, Unreachable
from twinpod.master.batch_server import BatchServer
from twinpod.master.books import FILE
from twinpod.master.dispatcher import Dispatcher, OpenRoster
from twinpod.master.judges import InProcess
from twinpod.master.rewards import Judge
from twinpod.master.service import MasterService
from twinpod.master.sinks import EvaluationSink
from twinpod.master.work_buffer import Rules, WorkBuffer
from twinpod.records.rollout import PullRequest
from twinpod.rollout.__main__ import GrpcMaster
from twinpod.rollout.worker import Worker, WorkerSettings
from twinpod.rpc.certificates import issue, make_authority
from twinpod.rpc.channel import client_channel, serve
from twinpod.testing.rollout import FakeEngine, FakeSource
from twinpod.testing.small_run import EOS, LengthReward, prompts, settings


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    issue(make_authority("job"), ["localhost"], ["127.0.0.1"]).write(tmp_path)
    return tmp_path


@pytest.fixture
async def dispatcher(tls: Path) -> AsyncIterator[tuple[Dispatcher, str]]:
    made = Dispatcher(time.monotonic)
    with ThreadPoolExecutor(1) as thread:
        server = await serve([MasterService(made, BatchServer(tls / FILE, thread))], "127.0.0.1:0", tls)
        yield made, f"127.0.0.1:{server.port}"
        await server.stop()


async def test_the_real_worker_does_a_phase_and_is_cut_at_its_end(
    dispatcher: tuple[Dispatcher, str], tls: Path
) -> None:
    made, address = dispatcher
    made.epoch = 4
    rules = Rules(wanted=3, in_flight=5, sampling=replace(settings().sampling, segment_tokens=6), seed=1)
    buffer = WorkBuffer(rules=rules, epoch=4, iteration=2, version=7)
    engine = FakeEngine(lambda request: [9, 9, EOS] if request.tokens[1] != 3 else [9] * 1000, version=7, limit=4)
    stop = asyncio.Event()
    with ThreadPoolExecutor(1) as thread:
        sink = EvaluationSink(Judge(InProcess(LengthReward(), thread), str, 0.0, thread), prompts(5))
        for group in sink.groups:
            buffer.admit(group, {})
        async with client_channel(address, tls) as channel, sink:
            worker = Worker("w", GrpcMaster(channel, address), FakeSource(engine), WorkerSettings(capacity=8))
            working = asyncio.create_task(worker.run(stop))
            await asyncio.wait_for(made.run(buffer, sink, OpenRoster(), lambda finished, wanted: None), 20)
            stop.set()
            await working
    assert buffer.finished == 4  # all but the one that never ends
    assert len(sink.answers) == 4
    (left,) = buffer.slots.values()
    assert len(left.attempts[0].tokens) == 4  # what was generated before the cut is kept


async def test_a_worker_that_has_seen_a_newer_master_is_refused_and_before_the_epoch_all_are(
    dispatcher: tuple[Dispatcher, str], tls: Path
) -> None:
    made, address = dispatcher
    pull = PullRequest(worker="w", epoch=5, version=1, capacity=1, wait_s=0.1, tokens_generated=0, holding=())
    async with client_channel(address, tls) as channel:
        master = GrpcMaster(channel, address)
        with pytest.raises(Unreachable, match="no job epoch"):
            await master.pull(pull)
        made.epoch = 4
        with pytest.raises(StaleEpoch):
            await master.pull(pull)
        assert (await master.pull(replace(pull, epoch=3))).epoch == 4
