"""The job as the processes of one pod see it: job.json, and in a pod of a RolloutPool the engine of pool.json."""

from __future__ import annotations

from twinpod.api.environment import Environment
from twinpod.api.load import load_as, load_manifest
from twinpod.api.types import RLJob, RolloutPool
from twinpod.records.life import LifeCycle

__all__ = ["load_job", "seen_from_pool"]


def load_job(environment: Environment) -> RLJob:
    """The job for the processes of this pod; InputError when a file cannot be read."""
    job = load_manifest(environment.job_file)
    if environment.pool_file is None:
        return job
    return seen_from_pool(job, load_as(RolloutPool, environment.pool_file))


def seen_from_pool(job: RLJob, pool: RolloutPool) -> RLJob:
    """The job with the pool's engine, accelerators and shared memory in place of the hybrid pods'.

    The engine is kept up between rollout phases: there is no trainer in the pod that needs its memory.
    """
    own = pool.spec
    hybrid = job.spec.hybrid.model_copy(
        update={
            "accelerators": own.accelerators,
            "shared_memory": own.shared_memory or job.spec.hybrid.shared_memory,
            "life_cycle": LifeCycle.KEEP,
            "inference": own.inference,
        }
    )
    return job.model_copy(update={"spec": job.spec.model_copy(update={"hybrid": hybrid})})
