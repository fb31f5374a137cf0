"""What the master needs of its job, as one flat record; the rest of the room does not know the resource types."""

from __future__ import annotations

import json
from dataclasses import dataclass

from twinpod.api.types import RLJob
from twinpod.master.books import Identity
from twinpod.records.life import LifeCycle
from twinpod.records.rollout import SamplingSettings
from twinpod.replay.baseline import Baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterSettings:
    """Numbers of one job."""

    iterations: int
    seed: int
    group_size: int
    groups_per_iteration: int
    groups_in_flight: int
    mini_batches: int  # optimizer steps that the groups of an iteration are cut into
    sampling: SamplingSettings
    max_segment_age: int  # iterations
    repeat_penalty: float
    baseline: Baseline
    tau: float
    weights_gap_limit: float
    snapshot_every: int  # iterations
    keep_iterations: int  # whose trajectories stay in the books
    hybrid_replicas: int
    life_cycle: LifeCycle
    moves_memory: bool  # trainer state leaves the accelerator for the rollout phase (OFFLOAD, ONLOAD)
    recorded: str = "{}"  # JSON of the spec's parts that the books keep with every iteration


def settings_of(job: RLJob, stop_token_ids: tuple[int, ...]) -> MasterSettings:
    """The settings of a validated job."""
    spec = job.spec
    rollout, algorithm, hybrid = spec.rollout, spec.algorithm, spec.hybrid
    return MasterSettings(
        iterations=spec.iterations,
        seed=spec.seed,
        group_size=algorithm.group_size,
        groups_per_iteration=algorithm.groups_per_iteration,
        groups_in_flight=rollout.groups_in_flight,
        mini_batches=algorithm.mini_batches,
        sampling=SamplingSettings(
            temperature=float(rollout.temperature),
            top_p=float(rollout.top_p),
            segment_tokens=rollout.segment_tokens,
            max_tokens=rollout.max_tokens,
            stop_token_ids=stop_token_ids,
            repeat_ngram=rollout.repeat.ngram,
            repeat_count=rollout.repeat.count,
        ),
        max_segment_age=rollout.max_segment_age,
        repeat_penalty=float(rollout.repeat.penalty),
        baseline=Baseline(algorithm.baseline),
        tau=float(algorithm.tau),
        weights_gap_limit=float(algorithm.weights_gap_limit),
        snapshot_every=spec.storage.snapshot_every,
        keep_iterations=spec.storage.keep_iterations,
        hybrid_replicas=hybrid.replicas,
        life_cycle=LifeCycle(hybrid.life_cycle),
        moves_memory=hybrid.accelerators > 0 or hybrid.trainer.offload,
        recorded=recorded_of(job),
    )


def identity_of(job: RLJob) -> Identity:
    """What may not change between two starts on one folder: what the API calls fixed. All else may."""
    spec = job.spec.model_dump(mode="json", by_alias=True)
    fields = {f"spec.{name}": json.dumps(spec[name], sort_keys=True) for name in ("seed", "model", "dataset")}
    return Identity(job=job.metadata.name, fields=fields)


def recorded_of(job: RLJob) -> str:
    """What the books keep with every iteration, as JSON: what it generated, scored and trained under, and where."""
    spec = job.spec.model_dump(mode="json", by_alias=True)
    spec["hybrid"].pop("podPatch", None)  # may hold what is not for everybody
    return json.dumps({name: spec[name] for name in ("algorithm", "rollout", "reward", "hybrid")}, sort_keys=True)
