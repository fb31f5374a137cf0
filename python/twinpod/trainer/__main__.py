"""`python -m twinpod.trainer`, one process a rank, started by torchrun under the training half. Wires a rank and
serves.

Reads the pod's environment (`twinpod.api.environment`), the job, and torchrun's variables; nothing below reads the
environment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinpod.api import names
from twinpod.api.environment import Environment, read_environment
from twinpod.api.load import load_manifest
from twinpod.api.model_folder import hf_config, write_model_folder
from twinpod.api.pods import HybridSpec
from twinpod.api.quantity import to_bytes
from twinpod.api.types import RLJob
from twinpod.errors import EnvironmentFault, InputError, TwinpodError
from twinpod.records.life import LONGEST_ORDER_S
from twinpod.records.model_shape import ModelShape
from twinpod.records.training import DataLayout, TrainSettings

if TYPE_CHECKING:
    from torch import Tensor

    from twinpod.trainer.megatron import RankModel
    from twinpod.trainer.memory import Memory
    from twinpod.trainer.place import Place
    from twinpod.trainer.wire import Control

log = logging.getLogger("twinpod.trainer")
RANKS_TIMEOUT_S = 600.0  # in a step, of NCCL or gloo: the others come in this time or never
CONTROL_TIMEOUT_S = LONGEST_ORDER_S + 60.0  # while some write files and others wait; the order's deadline comes first
# What Megatron warns of without its GPU companions, or about itself: the normal state of a CPU platform.
NOISE = (
    ".*(Apex|Transformer Engine|custom_layers.transformer_engine|dynamic_context|full scope is deprecated"
    "|async grad allreduce|core_attn is from transformer_engine|reduce_scatter_tensor|all_gather_into_tensor)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Torchrun:
    """What torchrun says of this process, and how the half started it."""

    rank: int
    local_rank: int
    local_size: int
    attempt: int
    link: str  # host:port of the training half; empty: this pod's own

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> Torchrun:
        """From the process's environment."""
        return cls(
            rank=int(variables["RANK"]),
            local_rank=int(variables["LOCAL_RANK"]),
            local_size=int(variables["LOCAL_WORLD_SIZE"]),
            attempt=int(variables.get("TWINPOD_ATTEMPT", "0")),
            link=variables.get("TWINPOD_LINK", ""),
        )


def train_settings(job: RLJob) -> TrainSettings:
    """The algorithm's numbers of a job."""
    algorithm = job.spec.algorithm
    return TrainSettings(
        learning_rate=float(algorithm.learning_rate),
        betas=(float(algorithm.betas[0]), float(algorithm.betas[1])),
        weight_decay=float(algorithm.weight_decay),
        eps=float(algorithm.eps),
        tau=float(algorithm.tau),
        temperature=float(job.spec.rollout.temperature),
        mask=algorithm.mask,
        steps=algorithm.steps_per_iteration,
        clip_grad=float(algorithm.clip_grad),
        micro_batch_tokens=algorithm.micro_batch_tokens,
        max_micro_batch_tokens=algorithm.max_micro_batch_tokens,
        warmup_iterations=algorithm.learning_rate_schedule.warmup_iterations,
        decay=algorithm.learning_rate_schedule.decay,
        minimum_rate=float(algorithm.learning_rate_schedule.minimum),
        iterations=job.spec.iterations,
    )


def run(environment: Environment, torchrun: Torchrun) -> None:
    """Build the rank, then serve until EXIT."""
    from twinpod.trainer.half_client import HalfClient, MasterClient
    from twinpod.trainer.loop import Duties, serve
    from twinpod.trainer.publish import Publisher
    from twinpod.trainer.wire import Control, Replica

    job = load_manifest(environment.job_file)
    spec = job.spec.hybrid.trainer
    config = hf_config(job)
    rank = built_rank(job, config, torchrun)
    place = rank.place
    leader = torchrun.rank == 0
    if leader:
        write_model_folder(job, environment.model_folder)
    link = torchrun.link or f"{environment.address}:{names.TRAINING_PORT}"
    control = Control(CONTROL_TIMEOUT_S)
    replica = Replica(control, place.dp_rank, RANKS_TIMEOUT_S)
    settings = train_settings(job)
    duties = Duties(
        rank=rank,
        control=control,
        replica=replica,
        memory=memory_of(rank, job.spec.hybrid),
        settings=settings,
        publishes=place.dp_rank % spec.data_parallel == 0,
        publisher=lambda: Publisher(
            rank,
            environment.shm / f"rank-{torchrun.local_rank}.arena",
            owner=f"{environment.pod}/rank-{torchrun.local_rank}",
            address=f"{environment.address}:{names.TRAINING_PORT}",
            threads=max(1, len(os.sched_getaffinity(0)) // torchrun.local_size),
        ),
        fresh=fresh_weights(job, rank, control),
        config=config,
        tokenizer=environment.model_folder,
    )
    log.info("rank %d ready: %s", torchrun.rank, place)
    serve(
        duties,
        HalfClient(link, environment.tls, attempt=torchrun.attempt) if leader else None,
        MasterClient(
            environment.master, environment.tls, rank=place.dp_rank, layout=data_layout(settings, rank.shape, place)
        )
        if replica.leads
        else None,
    )


def built_rank(job: RLJob, config: dict[str, Any], torchrun: Torchrun) -> RankModel:
    """Check the sizes, join the other ranks, build this rank's part of the model."""
    from twinpod.records.model_shape import shape_from_huggingface
    from twinpod.trainer.megatron import Activations, build_rank, lay_out, start_ranks
    from twinpod.trainer.place import Sizes, check_sizes

    spec = job.spec.hybrid.trainer
    shape = shape_from_huggingface(config)
    sizes = Sizes(tensor=spec.tensor_parallel, pipeline=spec.pipeline_parallel)
    check_sizes(shape, sizes, spec.ranks * job.spec.hybrid.replicas)
    machine = start_ranks(
        local_rank=torchrun.local_rank,
        dtype=job.spec.model.dtype,
        timeout_s=RANKS_TIMEOUT_S,
        layer_spec=spec.layer_spec or "TransformerEngine",
    )
    check_accelerators(job.spec.hybrid, on_cpu=machine.is_cpu)
    place = lay_out(sizes, machine, seed=job.spec.seed)
    activations = Activations(recompute=spec.recompute, sequence_parallel=spec.sequence_parallel)
    return build_rank(shape, place, machine, activations)


def memory_of(rank: RankModel, hybrid: HybridSpec) -> Memory:
    """What moves the rank's state; on a GPU it looks first whether the engine has let go of the device."""
    from twinpod.trainer.memory import Look, RankMemory, device_memory

    machine, terms = rank.machine, hybrid.hand_over
    if machine.is_cpu:
        return RankMemory(rank, enabled=hybrid.trainer.offload)
    look = Look(
        ask=lambda: device_memory(machine.device),
        residue=to_bytes(terms.residue),
        deadline_s=float(terms.deadline_seconds),
    )
    return RankMemory(rank, enabled=True, look=look)


def data_layout(settings: TrainSettings, shape: ModelShape, place: Place) -> DataLayout:
    """How the master is to divide a batch for these ranks and this model."""
    return DataLayout(
        ranks=place.dp_size,
        micro_batch_tokens=settings.micro_batch_tokens,
        attention_tokens=shape.attention_tokens,
    )


def check_accelerators(hybrid: HybridSpec, *, on_cpu: bool) -> None:
    """EnvironmentFault where a job that asks for GPUs would train on the CPU for days without a word.

    Devices of a class of another maker say nothing of themselves: such a job runs on what there is.
    """
    asks = hybrid.accelerators > 0 and (hybrid.sharing == "WholeNode" or hybrid.device_class.endswith("nvidia.com"))
    if asks and on_cpu:
        raise EnvironmentFault(
            f"the pod was given {hybrid.accelerators} of class {hybrid.device_class}, and torch sees no GPU",
            where="spec.hybrid.accelerators",
            mend="see nvidia-smi in the pod, use images built for CUDA, or set accelerators: 0",
        )


def fresh_weights(job: RLJob, rank: RankModel, control: Control) -> Callable[[], None]:
    """What fills the weights of a run without a snapshot of its own: the model's folder, another job's snapshot, or
    random numbers from the job's seed.
    """
    from twinpod.trainer.optimizer import fill
    from twinpod.trainer.weights import load_random

    folder, source = job.spec.model.folder, job.spec.model.from_snapshot
    if folder is None and source is not None:
        return lambda: _load_other(rank, control, Path(source.path))
    if folder is not None:
        return lambda: fill(rank.optimizer, lambda to: _load_folder(rank, to, Path(folder)))
    return lambda: fill(rank.optimizer, lambda to: load_random(to, rank.shape, rank.place, job.spec.seed))


def _load_folder(rank: RankModel, to: Mapping[str, Tensor], folder: Path) -> None:
    from twinpod.trainer.weights import data_peers, load_folder

    read = load_folder(to, rank.shape, rank.place, folder, data_peers(on_cpu=rank.machine.is_cpu))
    log.info("weights of %s: %d MiB read here", folder, read >> 20)


def _load_other(rank: RankModel, control: Control, folder: Path) -> None:
    from twinpod.trainer.snapshot import load_snapshot

    note = load_snapshot(rank, control, folder)
    log.info("weights of another job: %s, its iteration %d", folder, note.iteration)


@contextlib.contextmanager
def refusals_told(file: Path) -> Iterator[None]:
    """Leaves the line of an InputError for the half, whole or not at all."""
    try:
        yield
    except InputError as error:
        part = file.with_name(f".{file.name}.{os.getpid()}")
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(error.line(), encoding="utf-8")
        os.replace(part, file)
        raise


def main() -> int:
    """Exit 0 after EXIT, 2 for wrong input, 1 for the machine.

    One line on stderr, no traceback, for what a person can mend. Torchrun swallows the code: the half reads the file.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # why: see loop.py
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    warnings.filterwarnings("ignore", message=NOISE)
    logging.getLogger("megatron").setLevel(logging.WARNING)
    try:
        environment = read_environment()
        with refusals_told(environment.input_error_file):
            run(environment, Torchrun.read(os.environ))
    except TwinpodError as error:
        print(f"twinpod.trainer: {error.line()}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
