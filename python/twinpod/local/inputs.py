"""What a file for `twinpod run` holds: one RLJob, and RolloutPools that serve it, as YAML documents."""

from __future__ import annotations

from pathlib import Path

from twinpod.api.load import load_manifest, load_resources
from twinpod.api.types import RLJob, RolloutPool
from twinpod.errors import InputError


def load_run(path: Path) -> tuple[RLJob, tuple[RolloutPool, ...]]:
    """The job of a file and its pools; InputError for anything else that stands in it."""
    resources = load_resources(path)
    if len(resources) == 1 and not isinstance(resources[0], RLJob):
        return load_manifest(path), ()  # which says what it should be
    jobs: list[RLJob] = []
    pools: list[RolloutPool] = []
    for resource in resources:
        if isinstance(resource, RLJob):
            jobs.append(resource)
        elif isinstance(resource, RolloutPool):
            pools.append(resource)
        else:
            raise InputError(
                f"{resource.kind} {resource.metadata.name} is not honoured by local mode",
                where=str(path),
                mend="take it out, or run the job on Kubernetes",
            )
    if len(jobs) != 1:
        raise InputError(f"holds {len(jobs)} RLJobs; one is run at a time", where=str(path))
    for number, pool in enumerate(pools):
        _check_pool(pool, jobs[0], pools[:number], str(path))
    return jobs[0], tuple(pools)


def _check_pool(pool: RolloutPool, job: RLJob, others: list[RolloutPool], where: str) -> None:
    name = pool.metadata.name
    if pool.spec.job != job.metadata.name:
        raise InputError(
            f"RolloutPool {name} serves the job {pool.spec.job}, the file's job is {job.metadata.name}", where=where
        )
    if pool.metadata.namespace != job.metadata.namespace:
        raise InputError(
            f"RolloutPool {name} is in namespace {pool.metadata.namespace}, its job in {job.metadata.namespace}",
            where=where,
        )
    if name in (other.metadata.name for other in others):
        raise InputError(f"RolloutPool {name} stands twice in it", where=where)
