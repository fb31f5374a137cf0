"""A job that is over stays over. Pure.

Nothing of it is ever created again. Pods that have ended are kept for their logs until the job is deleted; pods that
still run are given a moment to end by themselves when the job succeeded, and are stopped at once when it failed. The
job deletes itself when its time to live is over; volumes obey `storage.whenDeleted`, as it stands then.
"""

from __future__ import annotations

from twinpod.api import names
from twinpod.api.names import Condition
from twinpod.api.types import RLJob
from twinpod_operator.nouns import Action, Delete, Mark, Observed
from twinpod_operator.policies.attempts import queued
from twinpod_operator.policies.memory import Memory
from twinpod_operator.policies.volumes import align

__all__ = ["SETTLE_S", "finish"]

SETTLE_S = 30.0  # for the other pods to end by themselves after the master has


def finish(observed: Observed, memory: Memory, job: RLJob | None, now: float) -> tuple[list[Action], float | None]:
    """What is left to do for a finished job, and when to look again."""
    actions: list[Action] = [*align(observed)]
    wake: list[float] = []
    alive = [pod for pod in observed.pods if not pod.ended and not pod.deleting]
    if queued(observed):  # failed pods keep the queue's finalizer unless their group says that nobody replaces them
        actions += _end_group(observed)
    settled = memory.completion + SETTLE_S
    if memory.outcome is Condition.FAILED or now >= settled:
        actions += [Delete(kind="Pod", name=pod.name, uid=pod.uid) for pod in alive]
    elif alive:
        wake.append(settled - now)
    ttl = job.spec.ttl_seconds_after_finished if job is not None else None
    if ttl is not None:
        if now >= memory.completion + ttl:
            actions.append(Delete(kind=observed.key.kind, name=observed.key.name, uid=observed.uid))
        else:
            wake.append(memory.completion + ttl - now)
    return actions, min(wake, default=None)


def _end_group(observed: Observed) -> list[Action]:
    marked = [pod for pod in observed.pods if pod.phase == "Failed" and not pod.ends_group]
    return [Mark(name=pod.name, uid=pod.uid, annotation=names.QUEUE_RETRIABLE, value="false") for pod in marked]
