"""Another run as the start of this one: what `model.fromSnapshot.claim` means on one machine.

On Kubernetes it names a volume claim. A run's snapshots folder is its claim here, so the same name is looked for among
the runs that lie beside this one; a run folder's own name does as well, because people know that one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from twinpod.api import names
from twinpod.api.types import RLJob
from twinpod.errors import InputError
from twinpod.local.folder import RunFolder

WHERE = "spec.model.fromSnapshot"


def source_claims(job: RLJob, folder: RunFolder) -> dict[str, Path]:
    """Claim → snapshots folder of the run that the weights come from; empty when they come from elsewhere.

    InputError names the runs that there are.
    """
    source = job.spec.model.from_snapshot
    if source is None:
        return {}
    there = dict(_runs_beside(folder))
    found = there.get(source.claim)
    if found is None:
        known = ", ".join(sorted(there)) or "none"
        raise InputError(
            f"is {source.claim!r}; no run in {folder.root.parent} has it",
            where=f"{WHERE}.claim",
            mend=f"name a run folder beside this one, or its claim: {known}",
        )
    if not (found / source.folder).is_dir():
        left = ", ".join(sorted(one.name for one in found.iterdir() if one.is_dir())) or "nothing"
        raise InputError(
            f"is {source.folder!r}; {found} holds {left}", where=f"{WHERE}.folder", mend="name one of them"
        )
    return {source.claim: found}


def as_seen_from_outside(job: RLJob, claims: dict[str, Path]) -> RLJob:
    """The job with the source's place on this machine, for who reads it before any container has its mounts."""
    source, model = job.spec.model.from_snapshot, job.spec.model
    if source is None or model.config is not None:
        return job
    seen = model.model_copy(update={"from_": str(claims[source.claim] / source.folder), "from_snapshot": None})
    return job.model_copy(update={"spec": job.spec.model_copy(update={"model": seen})})


def _runs_beside(folder: RunFolder) -> Iterator[tuple[str, Path]]:
    """(name, snapshots folder) of every other run in the same folder, under each of its names."""
    for path in sorted(folder.root.parent.glob("*/run.json")):
        run = RunFolder(path.parent)
        if run.root == folder.root or not run.job_file.exists() or not run.snapshots.is_dir():
            continue
        name = json.loads(run.job_file.read_text())["metadata"]["name"]
        yield names.snapshots_claim_name(name, run.uid()), run.snapshots
        yield run.root.name, run.snapshots
