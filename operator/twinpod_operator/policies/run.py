"""The pods of a job's present attempt: those of older attempts leave first, then a whole set is made and placed. Pure.

Pods are created, never changed, and never deleted by force. An older pod that may still live holds the next set back;
one whose node does not answer is given up at the end of its grace period: its replacement has another name, and the
job epoch keeps the old one out. Its devices are not free before the driver has released them.
Pods with a podPatch are proved by a dry run before the first of their set is created.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from twinpod.api import names
from twinpod.api.names import Reason
from twinpod.api.types import RLJob
from twinpod_operator.nouns import Action, Create, Delete, Finding, Observed, PodView, Prove
from twinpod_operator.policies.attempts import OVERDUE_S, Ended, current, may_live, wanted_pods
from twinpod_operator.policies.children import job_pods, unpublish
from twinpod_operator.policies.gang import gated, needs_gate, place, unplaced
from twinpod_operator.policies.memory import Memory, stamp
from twinpod_operator.render_containers import Platform

__all__ = ["RETRY_S", "Run", "Stop", "class_missing", "plan_run", "plan_stop"]

RETRY_S = 30.0  # to look again for what a person has to bring: a device class, a volume claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Older pods on their way out."""

    actions: tuple[Action, ...]
    wake: float | None
    notes: tuple[Finding, ...]
    blocked: bool  # some of them may still live


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The next steps of an attempt, what to remember, and its end when it could not be placed."""

    memory: Memory
    actions: tuple[Action, ...] = ()
    wake: float | None = None
    notes: tuple[Finding, ...] = ()
    ended: Ended | None = None


def plan_stop(observed: Observed, memory: Memory, now: float, *, master_first: bool = False) -> Stop:
    """Delete what belongs to older attempts, and tell who is waited for.

    `master_first`: nothing is wrong with them, so the master takes a snapshot before the others go.
    """
    old = [pod for pod in observed.pods if pod.attempt < memory.attempt]
    masters = [pod for pod in old if pod.role == names.Role.MASTER and may_live(pod, now)] if master_first else []
    actions: list[Action] = [
        Delete(kind="Pod", name=pod.name, uid=pod.uid) for pod in masters or old if not pod.deleting
    ]
    actions += unpublish(old, now)
    alive = [pod for pod in old if may_live(pod, now)]
    wake = [pod.delete_by + OVERDUE_S + 1.0 - now for pod in alive if pod.deleting]
    notes = [Finding(reason=Reason.TERMINATING, message=f"waits for pods to end: {_named(alive)}")] if alive else []
    notes += _held_devices(observed, old)
    return Stop(
        actions=tuple(actions),
        wake=max(0.5, min(wake)) if wake else None,
        notes=tuple(notes),
        blocked=bool(alive),
    )


def plan_run(observed: Observed, memory: Memory, job: RLJob, platform: Platform, now: float) -> Run:
    """See the module."""
    stop = plan_stop(observed, memory, now)
    if stop.blocked:
        return Run(memory=memory, actions=stop.actions, wake=stop.wake, notes=stop.notes)
    pods, wanted = current(observed, memory), wanted_pods(job)
    there = {(pod.role, pod.index) for pod in pods}
    missing = [one for one in wanted if one not in there]
    if not missing:
        memory = replace(memory, complete_attempt=memory.attempt, not_before=0.0)
    elif now < memory.not_before and not pods:
        pause = _pause(memory)
        return Run(memory=memory, actions=stop.actions, wake=memory.not_before - now, notes=(pause, *stop.notes))
    elif observed.missing_device_class:
        return _wait_for_class(memory, job, stop, now)
    actions: list[Action] = [*stop.actions]
    if missing and memory.complete_attempt != memory.attempt:
        actions += _creations(observed, memory, job, platform, missing)
    ungate, memory, ended = place(observed, memory, job, now)
    deadline = memory.placing_since + job.spec.failure_policy.scheduling_deadline_seconds - now
    placed = not missing and all(pod.scheduled for pod in pods)
    wake = None if placed or not memory.placing_since else max(0.5, deadline)
    if placed and not all(pod.ready for pod in pods):
        wake = max(0.5, memory.placing_since + job.spec.failure_policy.start_deadline_seconds - now)
    return Run(memory=memory, actions=(*actions, *ungate), wake=wake, notes=stop.notes, ended=ended)


def _wait_for_class(memory: Memory, job: RLJob, stop: Stop, now: float) -> Run:
    """Nothing is made that could not be placed; each scheduling deadline that passes so costs a scheduling retry."""
    lacking = class_missing(job.spec.hybrid.device_class, "hybrid.")
    since = memory.placing_since or now
    deadline = since + job.spec.failure_policy.scheduling_deadline_seconds
    if now >= deadline:
        ended = unplaced(lacking, memory, job)
        if ended.outcome is not None:
            return Run(memory=memory, ended=ended)
        memory = replace(memory, scheduling_retries=memory.scheduling_retries + 1)
        since, deadline = now, now + job.spec.failure_policy.scheduling_deadline_seconds
    return Run(
        memory=replace(memory, placing_since=since),
        actions=stop.actions,
        wake=min(RETRY_S, deadline - now),
        notes=(lacking, *stop.notes),
    )


def _creations(
    observed: Observed, memory: Memory, job: RLJob, platform: Platform, missing: list[tuple[str, int]]
) -> list[Action]:
    patched = {names.Role.MASTER.value: job.spec.master.pod_patch, names.Role.HYBRID.value: job.spec.hybrid.pod_patch}
    unproved = {role for role, patch in patched.items() if patch is not None and not current(observed, memory)}
    proofs: list[Action] = []
    result: list[Action] = []
    for manifest in job_pods(job, platform, observed.uid, memory.attempt):
        labels = manifest["metadata"]["labels"]
        if (labels[names.LABEL_ROLE], int(labels[names.LABEL_INDEX])) in missing:
            pod = gated(manifest, job, wait=needs_gate(observed, job))
            result.append(Create(manifest=pod))
            if labels[names.LABEL_ROLE] in unproved:  # the others of its role differ in their names alone
                unproved.remove(labels[names.LABEL_ROLE])
                proofs.append(Prove(manifest=pod))
    return [*proofs, *result]


def _held_devices(observed: Observed, old: list[PodView]) -> list[Finding]:
    """Devices of pods that are going or gone, and that the driver has not released."""
    going = {pod.uid: pod.name for pod in old if pod.deleting}
    held = [going[claim.pod_uid] for claim in observed.claims if claim.allocated and claim.pod_uid in going]
    if not held:
        return []
    message = f"the device driver has not released the devices of {', '.join(sorted(held))}"
    return [Finding(reason=Reason.DEVICES_NOT_RELEASED, message=message)]


def _pause(memory: Memory) -> Finding:
    last = memory.last_fault
    why = f"; before: {last.reason}: {last.message}" if last is not None else ""
    return Finding(reason=Reason.BACKING_OFF, message=f"the next attempt starts at {stamp(memory.not_before)}{why}")


def class_missing(device_class: str, part: str) -> Finding:
    """What a person can do about it; `part` of the spec has the fields."""
    message = (
        f'the cluster has no device class "{device_class}"; install the driver that brings it, name another in '
        f"{part}deviceClass, or set {part}sharing: WholeNode"
    )
    return Finding(reason=Reason.DEVICE_CLASS_MISSING, message=message)


def _named(pods: list[PodView]) -> str:
    return ", ".join(f"{pod.name} on {pod.node}" if pod.node else pod.name for pod in pods)
