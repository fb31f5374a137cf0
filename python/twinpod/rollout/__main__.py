"""The rollout worker's process: `python -m twinpod.rollout`, a child of the inference half. Wiring only."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any

import grpc.aio

from twinpod.api.environment import Environment, read_environment
from twinpod.api.pod_view import load_job
from twinpod.errors import TwinpodError
from twinpod.records.rollout import PullRequest, WorkBatch, WorkResult
from twinpod.rollout.engine_file import EngineFile
from twinpod.rollout.engines import several
from twinpod.rollout.ports import EngineEndpoint, EnginePort
from twinpod.rollout.sglang_stream import SGLangStream
from twinpod.rollout.worker import Worker, WorkerSettings
from twinpod.rpc.channel import ask, client_channel
from twinpod.rpc.convert import pull_to_pb, work_batch_from_pb, work_result_to_pb
from twinpod.rpc.v1 import master_pb2, master_pb2_grpc

ENGINE_FILE = "engine.json"  # in the pod's run folder; written by the inference half
PULL_SLACK_S = 10.0  # on top of the wait that a pull asks for
GIVE_S = 30.0  # deadline of a give: the master stores before it answers


class GrpcMaster:
    """MasterPort over gRPC."""

    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        self._stub: Any = master_pb2_grpc.MasterStub(channel)  # type: ignore[no-untyped-call]  # generated code
        self._address = address

    async def pull(self, pull: PullRequest) -> WorkBatch:
        """Long poll."""
        request = pull_to_pb(pull)
        timeout = pull.wait_s + PULL_SLACK_S
        answer = await ask(self._stub.PullWork, request, timeout=timeout, where=f"{self._address} PullWork")
        return work_batch_from_pb(answer)

    async def give(self, epoch: int, results: Sequence[WorkResult]) -> None:
        """Stored when it returns."""
        request = master_pb2.ReturnRequest(epoch=epoch, results=[work_result_to_pb(result) for result in results])
        await ask(self._stub.ReturnWork, request, timeout=GIVE_S, where=f"{self._address} ReturnWork")


def connect(serving: EngineEndpoint) -> EnginePort:
    """A port to the engines that the half announces."""
    return several([SGLangStream(url, serving.api_key) for url in serving.urls])


async def work(environment: Environment, capacity: int) -> None:
    """Run the worker until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    async with client_channel(environment.master, environment.tls) as channel:
        master = GrpcMaster(channel, environment.master)
        engines = EngineFile(environment.run / ENGINE_FILE, connect)
        await Worker(environment.pod, master, engines, WorkerSettings(capacity=capacity)).run(stop)


def main() -> int:
    """Exit code: 0 when told to stop, 2 for wrong input, 1 for the rest."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        environment = read_environment()
        job = load_job(environment)
        asyncio.run(work(environment, job.spec.hybrid.inference.max_running))
    except TwinpodError as error:
        print(f"twinpod.rollout: {error.line()}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
