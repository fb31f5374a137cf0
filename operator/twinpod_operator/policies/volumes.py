"""The volume claims that were made for a job: whom they belong to, and what it means when the books are gone. Pure.

`storage.whenDeleted` may be changed at any time, on a finished job too, and the garbage collector knows only owner
references. So they are brought in line whatever the job's state, and a job that is being deleted is not let go before
they say what the person wants: a volume that was to be kept would go with it.
A job that has run never gets an empty state claim in place of one that is gone: it would begin anew under its old name.
"""

from __future__ import annotations

from twinpod.api import names
from twinpod.api.names import Reason
from twinpod.api.types import RLJob
from twinpod_operator.nouns import Apply, ChildView, Finding, Manifest, Observed
from twinpod_operator.ownership import stamped
from twinpod_operator.policies.children import as_wanted, row_of
from twinpod_operator.policies.memory import Memory, recall
from twinpod_operator.render_run import child_metadata

__all__ = ["CLAIM", "align", "lost_state", "unseen_state"]

CLAIM = "PersistentVolumeClaim"


def align(observed: Observed) -> list[Apply]:
    """What gives the claims that exist the owner that `storage.whenDeleted` says; of any job, valid or not."""
    storage = (observed.raw.get("spec") or {}).get("storage") or {}
    owned = storage.get("whenDeleted") == "Delete"
    result = []
    for child in observed.children:
        if child.kind == CLAIM and not child.deleting:
            manifest = _claim(observed, child.name, owned=owned)
            if not as_wanted(row_of(manifest), child):
                result.append(Apply(manifest=stamped(manifest), uid=child.uid))
    return result


def unseen_state(observed: Observed) -> Manifest | None:
    """The state claim of a job that has run and that is not seen: it is gone, or its labels are. Else None."""
    job = observed.resource
    if not isinstance(job, RLJob) or observed.deleting_since:
        return None
    memory = recall(observed)
    if memory.finished or not _has_books(memory, job) or _state(observed, job) is not None:
        return None
    owned = job.spec.storage.when_deleted == "Delete"
    return stamped(_claim(observed, names.state_claim_name(job.metadata.name, observed.uid), owned=owned))


def lost_state(observed: Observed, memory: Memory, job: RLJob) -> Finding | None:
    """Why a job that has run cannot go on with its books; None when its state claim is there."""
    if not _has_books(memory, job):
        return None
    claim, name = _state(observed, job), names.state_claim_name(job.metadata.name, observed.uid)
    if claim is not None and not claim.deleting:
        return None
    how = "does not exist" if claim is None else "is being deleted"
    message = (
        f'the volume claim "{name}" with the books of this job {how}; put it back under that name, with the label '
        f"{names.LABEL_JOB_UID}={observed.uid}, or delete the job and start another, from its snapshots if need be "
        "(model.fromSnapshot)"
    )
    return Finding(reason=Reason.STATE_LOST.value, message=message)


def _has_books(memory: Memory, job: RLJob) -> bool:
    return memory.complete_attempt > 0 and job.spec.storage.state.existing_claim is None


def _state(observed: Observed, job: RLJob) -> ChildView | None:
    name = names.state_claim_name(job.metadata.name, observed.uid)
    return next((child for child in observed.children if child.kind == CLAIM and child.name == name), None)


def _claim(observed: Observed, name: str, *, owned: bool) -> Manifest:
    """A claim without its spec, which stays as it is."""
    key = observed.key
    metadata = child_metadata(name, key.namespace, job=key.name, uid=observed.uid, owned=owned)
    return {"apiVersion": "v1", "kind": CLAIM, "metadata": metadata}
