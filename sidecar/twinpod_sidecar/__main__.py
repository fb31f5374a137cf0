"""`python -m twinpod_sidecar inference|training`: the first process of a container of a hybrid pod."""

from __future__ import annotations

import twinpod.process_one  # noqa: F401  # first, see there

# isort: split
import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from typing import Any

from twinpod.api.environment import Environment, read_environment
from twinpod.api.model_folder import write_model_folder
from twinpod.api.pod_view import load_job
from twinpod.api.types import RLJob
from twinpod.checkpoint.carriers.grpc import GrpcCarrier, shard_service
from twinpod.checkpoint.fetch import Stager
from twinpod.checkpoint.shard_offers import ShardOffers
from twinpod.coordination.etcd import EtcdStore
from twinpod.coordination.keys import Keys
from twinpod.errors import TwinpodError
from twinpod.inference.sglang_engine import EngineSpec, SGLangEngine, server_args
from twinpod.records.life import HalfKind
from twinpod.rpc.channel import listening_host, serve
from twinpod.rpc.ports import free_port
from twinpod_sidecar.children import Children
from twinpod_sidecar.devices import Nvml
from twinpod_sidecar.engine_port import Engine
from twinpod_sidecar.health import Health
from twinpod_sidecar.inference import InferenceHalf
from twinpod_sidecar.members import Member
from twinpod_sidecar.service import HalfService
from twinpod_sidecar.settings import (
    HalfSettings,
    check_shared_memory,
    inference_settings,
    needed_shared_memory,
    training_settings,
)
from twinpod_sidecar.training import TrainerLink, TrainingHalf

log = logging.getLogger("twinpod_sidecar")


class SGLang:
    """The engine kind of this release."""

    def arguments(self, spec: EngineSpec) -> dict[str, Any]:
        """See EngineKind."""
        return server_args(spec)

    def connect(self, url: str, api_key: str, tensor_parallel: int) -> Engine:
        """See EngineKind."""
        return SGLangEngine(url, api_key, tensor_parallel=tensor_parallel)


async def run_inference(job: RLJob, environment: Environment) -> int:
    """Wire the inference half and run it."""
    settings = inference_settings(job, environment, os.environ)
    news = asyncio.Event()
    offers = ShardOffers()
    address = f"{environment.address}:{settings.half.port}"
    stager = Stager(environment.shm, address, GrpcCarrier(environment.tls), offers)
    devices = Nvml(os.environ.get("CUDA_VISIBLE_DEVICES", ""), job.spec.hybrid.accelerators)
    half = InferenceHalf(settings, SGLang(), Children(), stager, devices, news.set)
    member = _member(environment, HalfKind.INFERENCE, half, news)
    return await _run(settings.half, half, [HalfService(half), shard_service(offers)], member)


async def run_training(job: RLJob, environment: Environment) -> int:
    """Wire the training half and run it."""
    attempt = time.time_ns() // 1_000_000
    settings = training_settings(job, environment, os.environ, free_port=free_port(), attempt=attempt)
    news = asyncio.Event()
    offers = ShardOffers()
    half = TrainingHalf(settings, Children(), offers, news.set)
    member = _member(environment, HalfKind.TRAINING, half, news)
    servicers = [HalfService(half), TrainerLink(half, attempt), shard_service(offers)]
    return await _run(settings.half, half, servicers, member)


def _member(
    environment: Environment, kind: HalfKind, half: InferenceHalf | TrainingHalf, news: asyncio.Event
) -> Member:
    store = EtcdStore(environment.etcd, environment.etcd_tls)
    keys = Keys(namespace=environment.namespace, job_uid=environment.job_uid)
    return Member(store, keys.member(environment.pod, kind), half.status, news, half.terminate)


async def _run(
    settings: HalfSettings, half: InferenceHalf | TrainingHalf, servicers: list[object], member: Member
) -> int:
    """Serve the half until it ends; the order of the end: children, word to etcd, gRPC, health.

    A native sidecar that was dismissed stays until SIGTERM, with nothing but its health: one that ended by itself would
    be started again, and counted as a crash, while the trainer beside it is still ending. So does a half that a newer
    pod has taken the place of: it has freed its devices, and its end is the kubelet's word.
    """
    loop = asyncio.get_running_loop()
    told = asyncio.Event()

    def end() -> None:
        told.set()
        half.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    host = listening_host(settings.environment.address)
    health = Health(host, settings.health_port)
    health.start()
    try:
        server = await serve(servicers, f"{host}:{settings.port}", settings.environment.tls)
        telling = loop.create_task(member.run())
        health.ready = True
        code = await half.run()
        telling.cancel()
        await member.leave()
        await server.stop(grace_s=2.0)
        over = isinstance(half, InferenceHalf) and half.dismissed and settings.environment.pool_file is None
        if over or member.outdated:
            log.info("%s; waits for the pod to end", "superseded" if member.outdated else "dismissed")
            await told.wait()
    finally:
        health.stop()
    return code


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 after EXIT or SIGTERM, 1 when the ranks or the machine failed, 2 for wrong input."""
    parser = argparse.ArgumentParser(prog="twinpod_sidecar", description=__doc__)
    parser.add_argument("half", choices=[kind.value for kind in HalfKind], help="which side of the pod this is")
    kind = HalfKind(parser.parse_args(arguments).half)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line a request otherwise
    try:
        environment = read_environment()
        job = load_job(environment)
        run = run_inference if kind is HalfKind.INFERENCE else run_training
        check_shared_memory(environment.shm, needed_shared_memory(job))
        environment.shm.mkdir(parents=True, exist_ok=True)
        environment.run.mkdir(parents=True, exist_ok=True)
        write_model_folder(job, environment.model_folder)
        return asyncio.run(run(job, environment))
    except TwinpodError as error:
        print(f"twinpod_sidecar {kind.value}: {error.line()}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
