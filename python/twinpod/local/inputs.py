"""What a file for `twinpod run` holds: one RLJob, and RolloutPools that serve it, as YAML documents."""

from __future__ import annotations

import re
from pathlib import Path

from twinpod.api.load import ManifestError, load_manifest, load_resource
from twinpod.api.types import RLJob, RolloutPool
from twinpod.errors import InputError

_RULE = re.compile(r"^---(?=\s|$)", re.MULTILINE)


def load_run(path: Path) -> tuple[RLJob, tuple[RolloutPool, ...]]:
    """The job of a file and its pools; InputError for anything else that stands in it, with the document's line."""
    parts = _documents(path)
    if len(parts) < 2:
        return load_manifest(path), ()
    jobs: list[RLJob] = []
    pools: list[RolloutPool] = []
    for line, text in parts:
        where = f"{path}, document at line {line}"
        try:
            resource = load_resource(text)
        except ManifestError as error:
            raise ManifestError(list(error.problems), where) from error
        if isinstance(resource, RLJob):
            jobs.append(resource)
        elif isinstance(resource, RolloutPool):
            pools.append(resource)
        else:
            raise InputError(
                f"{resource.kind} {resource.metadata.name} is not honoured by local mode",
                where=where,
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


def _documents(path: Path) -> list[tuple[int, str]]:
    """(first line, text) of each YAML document that is not empty; one for a file that cannot be read as text here."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []  # `load_manifest` says what is wrong
    starts = [0, *(found.start() for found in _RULE.finditer(text))]
    parts = []
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        part = text[start:end]
        said = [line for line in part.splitlines() if line.strip() and not line.lstrip().startswith(("#", "---"))]
        if said:
            parts.append((text.count("\n", 0, start) + 1, part if part.endswith("\n") else part + "\n"))
    return parts
