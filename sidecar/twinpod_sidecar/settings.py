"""From the pod's environment and the job to what a half needs to know. Pure, except `check_shared_memory`, which
looks at the file system.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from twinpod.api import names
from twinpod.api.environment import Environment
from twinpod.api.model_folder import hf_config
from twinpod.api.quantity import to_bytes
from twinpod.api.sizing.phases import shared_memory
from twinpod.api.sizing.read import setup_of
from twinpod.api.types import RLJob
from twinpod.errors import EnvironmentFault
from twinpod.inference.sglang_engine import EngineSpec
from twinpod.records.life import LifeCycle
from twinpod.records.model_shape import shape_from_huggingface
from twinpod_sidecar.children import ChildSpec
from twinpod_sidecar.devices import HandOver

GRACE_S = 20.0  # from SIGTERM to the end, all children included
_TOLERANCE = 0.99  # a file system is a little smaller than its size


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfSettings:
    """What both halves know."""

    environment: Environment
    port: int
    health_port: int
    grace_s: float = GRACE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceSettings:
    """The inference half's own."""

    half: HalfSettings
    life: LifeCycle
    standby: ChildSpec
    worker: ChildSpec
    engine: EngineSpec  # of all; port, key, seed and accelerators of each are set at its start
    engine_file: Path
    engine_log: Path
    engine_env: Mapping[str, str]
    hand_over: HandOver  # where there are accelerators
    engines: int = 1  # in the pod, each on accelerators of its own
    start_timeout_s: float = 300.0  # from fork to healthy
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """The training half's own."""

    half: HalfSettings
    ranks: ChildSpec
    leader: str = ""  # pod of rank 0, when that is another one


def inference_settings(job: RLJob, environment: Environment, variables: Mapping[str, str]) -> InferenceSettings:
    """`variables`: the half's own environment, which its children inherit."""
    spec = job.spec.hybrid
    engine = spec.inference
    env = {"OMP_NUM_THREADS": threads_a_process(engine.tensor_parallel * engine.data_parallel), **variables}
    accelerators = spec.accelerators > 0
    sleep = spec.life_cycle is LifeCycle.SLEEP and accelerators
    standby = ("-m", "twinpod.inference.standby", *(("--spawn", "--sleep") if sleep else ()))
    return InferenceSettings(
        half=_half(environment, names.INFERENCE_PORT, names.INFERENCE_HEALTH_PORT),
        life=spec.life_cycle,
        standby=_child("standby", standby, env, environment, pipes=True),
        worker=_child("rollout", ("-m", "twinpod.rollout"), env, environment),
        engine=EngineSpec(
            model_path=str(environment.model_folder),
            port=0,
            api_key="",
            kv_tokens=engine.kv_tokens,
            memory_fraction=float(engine.memory_fraction),
            context_length=shape_from_huggingface(hf_config(job)).max_positions,
            dtype=job.spec.model.dtype,
            tensor_parallel=engine.tensor_parallel,
            accelerators=accelerators,
            attention_backend=engine.attention_backend or "",
            max_running=engine.max_running,
            sleep=sleep,
        ),
        engine_file=environment.run / "engine.json",
        engine_log=environment.run / "engine.log",
        engine_env={},
        engines=engine.data_parallel,
        hand_over=HandOver(residue=to_bytes(spec.hand_over.residue), deadline_s=float(spec.hand_over.deadline_seconds)),
        seed=job.spec.seed,
    )


def training_settings(
    job: RLJob, environment: Environment, variables: Mapping[str, str], *, free_port: int, attempt: int
) -> TrainingSettings:
    """`free_port`: for the ranks' rendezvous when the job has one hybrid pod; `attempt`: tells this start's ranks
    from older ones.

    The rendezvous of several pods is static: a pod that fails takes all along (see `local.supervisor`), so nobody ever
    joins ranks that live, and a pod's index says which ranks are its own. Pods may come up in any order: torchrun asks
    for the first pod's name and port until it answers. Ranks then meet at the addresses that their own host names have,
    which in a pod is the pod's.
    """
    spec = job.spec.hybrid
    trainer = spec.trainer
    address, port, leader = "127.0.0.1", free_port, ""
    if spec.replicas > 1:
        first = names.hybrid_name(environment.job_name, 0)
        address, port = names.pod_host(first, environment.job_name, environment.namespace), names.RENDEZVOUS_PORT
        leader = first if environment.pod != first else ""
    index = environment.pod.rpartition("-")[2]
    env = {
        "OMP_NUM_THREADS": threads_a_process(trainer.ranks),
        **variables,
        "TWINPOD_LINK": f"{environment.address}:{names.TRAINING_PORT}",
        "TWINPOD_ATTEMPT": str(attempt),
    }
    arguments = (
        *("-m", "torch.distributed.run"),
        *("--nnodes", str(spec.replicas), "--node-rank", index if index.isdigit() else "0"),
        *("--nproc-per-node", str(trainer.ranks), "--master-addr", address, "--master-port", str(port)),
        *("--max-restarts", "0", "-m", "twinpod.trainer"),
    )
    return TrainingSettings(
        half=_half(environment, names.TRAINING_PORT, names.TRAINING_HEALTH_PORT),
        ranks=_child("trainer", arguments, env, environment),
        leader=leader,
    )


def needed_shared_memory(job: RLJob) -> int:
    """Bytes of /dev/shm: what the job says, or what its model needs."""
    given = job.spec.hybrid.shared_memory
    if given is not None:
        return to_bytes(given)
    return shared_memory(setup_of(job, shape_from_huggingface(hf_config(job))))


def check_shared_memory(folder: Path, needed: int) -> None:
    """EnvironmentFault when the shared memory that holds `folder` is smaller than the job asks for. Before anything
    else is done.
    """
    place = folder if folder.exists() else folder.parent
    space = os.statvfs(place)
    size = space.f_blocks * space.f_frsize
    if size < needed * _TOLERANCE:
        raise EnvironmentFault(
            f"shared memory too small: needs {needed / 2**20:.0f} MiB, has {size / 2**20:.0f} MiB",
            where=str(place),
            mend="mount an emptyDir with medium Memory and that sizeLimit there, or change spec.hybrid.sharedMemory",
        )


def threads_a_process(processes: int) -> str:
    """OpenMP threads for each of `processes`, half of the cores for both sides of the pod together; at least one."""
    return str(max(1, len(os.sched_getaffinity(0)) // (2 * processes)))


def _half(environment: Environment, port: int, health_port: int) -> HalfSettings:
    return HalfSettings(
        environment=environment,
        port=port,
        health_port=health_port,
    )


def _child(
    name: str, arguments: tuple[str, ...], env: Mapping[str, str], environment: Environment, *, pipes: bool = False
) -> ChildSpec:
    return ChildSpec(
        name=name, argv=(sys.executable, *arguments), env=env, log=environment.run / f"{name}.log", pipes=pipes
    )
