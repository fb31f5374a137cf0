"""Seconds from training to serving and back, for the demo's model and its 65,536 cache tokens, life cycle Restart.

The real inference half, its real standby and SGLang engine, ordered about as the master does:

- standby: SERVE with no engine up, until it is answered: fork, start, proof, load, observed version;
- back: REST, until it is answered: the engine's processes are observed gone, so the trainer may go on;
- cold: what a pod without a standby would pay: `python` started anew with the same server arguments, until the same
  load is observed.

In a run the engine's start also overlaps the trainer's publication (PREPARE); that is not made use of here.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tests.bench.load import KEY
from tests.bench.report import TOP, Say

from twinpod.api.environment import Environment
from twinpod.api.load import load_manifest
from twinpod.api.model_folder import hf_config, write_model_folder
from twinpod.api.types import RLJob
from twinpod.checkpoint.carriers.grpc import GrpcCarrier
from twinpod.checkpoint.fetch import Stager
from twinpod.checkpoint.shard_offers import ShardOffers
from twinpod.errors import EngineFault
from twinpod.inference.sglang_engine import server_args
from twinpod.inference.standby import make_payload
from twinpod.records import codec
from twinpod.records.life import Command, Reply, Verb
from twinpod.records.weights import WeightVersion
from twinpod.rpc.ports import free_port
from twinpod.testing.engine_client import GeneratingEngine
from twinpod.testing.standby_driver import publish
from twinpod.testing.weights import order_of
from twinpod_sidecar.__main__ import SGLang
from twinpod_sidecar.children import Children, ChildSpec
from twinpod_sidecar.inference import InferenceHalf
from twinpod_sidecar.settings import InferenceSettings, inference_settings

SAMPLE = TOP / "manifests" / "samples" / "reverse-letters.yaml"
SERVER = (
    "import json, sys\n"
    "from sglang.launch_server import run_server\n"
    "from sglang.srt.server_args import ServerArgs\n"
    "if __name__ == '__main__':\n"
    "    run_server(ServerArgs(**json.loads(sys.argv[1])))\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchSeconds:
    """One entry a repeat."""

    cold: list[float]
    standby: list[float]
    back: list[float]
    detail: str  # the half's own account of the last SERVE


def measure(repeats: int, say: Say) -> SwitchSeconds:
    """Warm switches first, then cold starts."""
    job = load_manifest(SAMPLE)
    assert isinstance(job, RLJob)
    with tempfile.TemporaryDirectory(prefix="twinpod-bench-", dir="/dev/shm") as name:
        environment = _environment(Path(name))
        write_model_folder(job, environment.model_folder)
        settings = inference_settings(job, environment, os.environ)
        idle = ChildSpec(
            name="rollout", argv=("sleep", "infinity"), env=dict(os.environ), log=Path(name) / "worker.log"
        )
        settings = replace(settings, worker=idle)  # the worker talks to a master, and there is none
        tensors = _tensors(job)
        standby, back, detail = asyncio.run(_warm(settings, tensors, repeats, say))
        cold = asyncio.run(_cold(settings, tensors, repeats, say))
    return SwitchSeconds(cold=cold, standby=standby, back=back, detail=detail)


def _environment(folder: Path) -> Environment:
    for part in ("tls", "run", "shm"):
        (folder / part).mkdir()
    return Environment(
        job_name="bench",
        namespace="bench",
        job_uid="bench",
        pod="bench-hybrid-0",
        attempt=1,
        address="localhost",
        master="localhost:1",
        etcd=("localhost:1",),
        tls=folder / "tls",
        run=folder / "run",
        shm=folder / "shm",
    )


def _tensors(job: RLJob) -> dict[str, torch.Tensor]:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    numbers = {key: value for key, value in hf_config(job).items() if key not in ("torch_dtype", "dtype")}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**numbers))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


async def _warm(
    settings: InferenceSettings, tensors: dict[str, torch.Tensor], repeats: int, say: Say
) -> tuple[list[float], list[float], str]:
    """(seconds to serving, seconds back, the half's account). The first, while pages are faulted in, is left out."""
    environment = settings.half.environment
    stager = Stager(
        environment.shm, "localhost:0", GrpcCarrier(environment.tls), ShardOffers()
    )  # nothing is fetched here
    half = InferenceHalf(settings, SGLang(), Children(), stager, lambda: None)
    life = asyncio.create_task(half.run())
    to, back, detail = [], [], ""
    try:
        for turn in range(repeats + 1):
            version, _, _ = publish(settings.half.environment.shm, tensors, turn + 1)
            serve = _order(Verb.SERVE, turn, version)
            began = time.perf_counter()
            reply = _good(await half.execute(serve))
            seconds = time.perf_counter() - began
            await asyncio.sleep(0.5)  # a rollout phase
            began = time.perf_counter()
            _good(await half.execute(_order(Verb.REST, turn)))
            gone = time.perf_counter() - began
            if turn:
                to.append(seconds)
                back.append(gone)
                detail = reply.detail
            say(f"standby to serving {seconds:.2f} s, back {gone:.2f} s", (turn + 1) / (8 * repeats))
    finally:
        half.terminate()
        await life
    return to, back, detail


def _order(verb: Verb, turn: int, version: WeightVersion | None = None) -> Command:
    return Command(
        key=f"1/{turn}/{verb.value}",
        verb=verb,
        epoch=1,
        iteration=turn,
        version=version.version if version else 0,
        argument=codec.dumps(order_of(version)) if version else "",
        deadline_s=300.0,
    )


def _good(reply: Reply) -> Reply:
    if reply.error:
        raise EngineFault(reply.error, where=reply.key)
    return reply


async def _cold(settings: InferenceSettings, tensors: dict[str, torch.Tensor], repeats: int, say: Say) -> list[float]:
    """Seconds from the start of a process to the observed version, no standby anywhere."""
    shm, found = settings.half.environment.shm, []
    _, manifest, digest = publish(shm, tensors, 1)
    for turn in range(repeats):
        port = free_port()
        arguments = server_args(replace(settings.engine, port=port, api_key=KEY))
        log = shm / "cold.log"
        began = time.perf_counter()
        with log.open("wb") as file:
            server = subprocess.Popen(
                [sys.executable, "-c", SERVER, json.dumps(arguments)],
                stdout=file,
                stderr=file,
                env={**os.environ, **settings.standby.env},
                start_new_session=True,
            )
        try:
            async with GeneratingEngine(f"http://127.0.0.1:{port}", KEY) as engine:
                await engine.wait_healthy(300)
                await engine.load(make_payload(manifest, digest), 1)
                found.append(time.perf_counter() - began)
        except EngineFault:
            shutil.copy(log, Path(tempfile.gettempdir()) / "twinpod-bench-engine.log")
            raise
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        say(f"cold start to serving {found[-1]:.1f} s", (1 + 7 * (turn + 1) / repeats) / 8)
    return found
