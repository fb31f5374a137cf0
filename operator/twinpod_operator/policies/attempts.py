"""What the pods of an attempt mean for the job. Pure.

The master decides: when it ended with 0 the job has succeeded. A pod that ended badly takes the whole set along, and
whose fault that was decides what it costs: a crash one of `maxRestarts`, a lost node or an eviction one of
`maxInfrastructureRestarts`, a preemption by a queue nothing. A wrong input (exit code 2) is not tried again. What a
crash means is decided by the very function that local mode uses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from twinpod.api import names
from twinpod.api.names import Condition, Reason
from twinpod.api.types import RLJob
from twinpod.errors import EXIT_INPUT
from twinpod.records.verdict import Outcome, Verdict, decide
from twinpod_operator.nouns import Fault, Finding, Observed, PodView
from twinpod_operator.policies.memory import Memory, recall

OURS = (names.CONTAINER_MASTER, names.CONTAINER_TRAINER, names.CONTAINER_INFERENCE)  # a podPatch may bring others
OVERDUE_S = 10.0  # after the end of its grace period a pod is given up: its node does not answer
# What keeps a scheduled pod from coming up
STUCK = (Reason.IMAGE_PULL, Reason.CREATE_CONTAINER, Reason.VOLUME, Reason.CLAIM_UNALLOCATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The attempt is over. With an outcome the job is, too; without one the next attempt follows."""

    outcome: Condition | None
    fault: Fault | None
    why: Finding


def wanted_pods(job: RLJob) -> tuple[tuple[str, int], ...]:
    """Role and index of each pod of a set."""
    hybrid = ((names.Role.HYBRID.value, index) for index in range(job.spec.hybrid.replicas))
    return ((names.Role.MASTER.value, 0), *hybrid)


def current(observed: Observed, memory: Memory) -> tuple[PodView, ...]:
    """Pods of the present attempt."""
    return tuple(pod for pod in observed.pods if pod.attempt == memory.attempt)


def vanished(observed: Observed) -> tuple[str, ...]:
    """Names of pods of a running attempt that are not seen any more: gone, or their labels are."""
    job = observed.resource
    if not isinstance(job, RLJob) or observed.deleting_since or job.spec.suspend:
        return ()
    memory = recall(observed)
    if memory.finished or memory.complete_attempt != memory.attempt:
        return ()
    there = {(pod.role, pod.index) for pod in current(observed, memory)}
    gone = [one for one in wanted_pods(job) if one not in there]
    return tuple(names.attempt_name(_stable(job.metadata.name, *one), memory.attempt) for one in gone)


def _stable(job: str, role: str, index: int) -> str:
    return names.master_name(job) if role == names.Role.MASTER else names.hybrid_name(job, index)


def overdue(pod: PodView, now: float) -> bool:
    """Its node should have ended it long ago; it may still live, but the job epoch keeps it out."""
    return pod.deleting and now > pod.delete_by + OVERDUE_S


def may_live(pod: PodView, now: float) -> bool:
    """It runs, may still start, or is being ended: nothing may take its place yet."""
    return not pod.ended and not overdue(pod, now)


def sidecar_restarts(observed: Observed, memory: Memory) -> int:
    """Restarts of native sidecars in the present attempt; the kubelet makes them whatever the pod's policy says."""
    return sum(pod.restarts for pod in current(observed, memory))


def judge(observed: Observed, memory: Memory, job: RLJob, now: float) -> Ended | None:
    """None while the attempt goes on."""
    pods, policy = current(observed, memory), job.spec.failure_policy
    master = names.master_name(job.metadata.name)
    if any(pod.role == names.Role.MASTER and pod.phase == "Succeeded" for pod in observed.pods):
        return Ended(outcome=Condition.SUCCEEDED, fault=None, why=Finding(reason=Reason.COMPLETED, message=""))
    lost = _lost(observed, memory, job, pods)
    if lost is not None:
        if lost.fault is Fault.INFRASTRUCTURE and memory.infrastructure_faults >= policy.max_infrastructure_restarts:
            return spent(lost, f"all {policy.max_infrastructure_restarts} infrastructure restarts are used up")
        return lost
    if refused := next((pod for pod in pods if input_error(pod)), None):
        return Ended(outcome=Condition.FAILED, fault=Fault.APPLICATION, why=first_reason(refused, Reason.INPUT_ERROR))
    used = memory.application_faults + sidecar_restarts(observed, memory)
    failed = [pod for pod in pods if pod.fault is Fault.APPLICATION]
    stuck = _stuck(observed, memory, job, pods, now)
    if failed or stuck is not None:
        first = min(failed, key=lambda pod: (pod.ended_at, pod.name)) if failed else None
        why = first_reason(first) if first is not None else stuck
        assert why is not None
        code = next((end.code for end in first.ends if end.code), 1) if first is not None else 1
        outcome = Outcome(pod=first.name if first else "", code=code, reason=why.message)
        decision = decide([outcome], master, used, policy.max_restarts)
        ended = Ended(outcome=None, fault=Fault.APPLICATION, why=Finding(reason=why.reason, message=decision.reason))
        if decision.verdict is Verdict.FAILED:
            return Ended(outcome=Condition.FAILED, fault=Fault.APPLICATION, why=ended.why)
        return ended
    if used > policy.max_restarts:
        crashed = Ended(outcome=None, fault=Fault.APPLICATION, why=_sidecar_reason(pods))
        return spent(crashed, f"all {policy.max_restarts} restarts are used up")
    return None


def input_error(pod: PodView) -> bool:
    """A process of ours found the input wrong; also in a sidecar, which the kubelet would start again for ever."""
    return any(end.code == EXIT_INPUT and end.container in OURS for end in pod.ends)


def first_reason(pod: PodView, wanted: Reason | None = None) -> Finding:
    """The pod's first reason, or its first of the `wanted` kind when there is one, told with its name."""
    found = pod.reasons[0] if pod.reasons else Finding(reason=Reason.CRASHED, message="ended without a word")
    found = next((reason for reason in pod.reasons if reason.reason == wanted), found)
    return Finding(reason=found.reason, message=f"pod {pod.name}: {found.message}")


def _lost(observed: Observed, memory: Memory, job: RLJob, pods: Iterable[PodView]) -> Ended | None:
    """A pod that was taken away from the attempt by others than the job itself; a queue's doing comes first."""
    there = {(pod.role, pod.index) for pod in pods}
    taken = [pod for pod in pods if pod.fault in (Fault.QUEUE, Fault.INFRASTRUCTURE)]
    taken.sort(key=lambda pod: (pod.fault is not Fault.QUEUE, not pod.reasons, pod.name))
    if taken:
        pod = taken[0]
        told = pod.reasons[0] if pod.reasons else Finding(reason=Reason.POD_DELETED, message="somebody deleted it")
        why = Finding(reason=told.reason, message=f"pod {pod.name}: {told.message}")
        fault = Fault.QUEUE if queued(observed) and told.reason == Reason.POD_DELETED else pod.fault
        return Ended(outcome=None, fault=fault, why=why)
    missing = [f"{role} {index}" for role, index in wanted_pods(job) if (role, index) not in there]
    if missing and memory.complete_attempt == memory.attempt:
        fault = Fault.QUEUE if queued(observed) else Fault.INFRASTRUCTURE
        why = Finding(reason=Reason.POD_DELETED, message=f"pod gone that nobody here deleted: {', '.join(missing)}")
        return Ended(outcome=None, fault=fault, why=why)
    return None


def queued(observed: Observed) -> bool:
    """True for a job of a queueing system."""
    return bool((observed.raw.get("metadata", {}).get("labels") or {}).get(names.QUEUE_LABEL))


def _stuck(observed: Observed, memory: Memory, job: RLJob, pods: tuple[PodView, ...], now: float) -> Finding | None:
    """A pod that has a node and cannot come up for a reason that stays, longer than the start deadline."""
    if not memory.placing_since or now < memory.placing_since + job.spec.failure_policy.start_deadline_seconds:
        return None
    for pod in pods:
        found = next((reason for reason in pod.reasons if reason.reason in STUCK), None)
        if pod.scheduled and not pod.ready and found is not None:
            return Finding(reason=found.reason, message=f"pod {pod.name}: {found.message}")
    waiting = [finding for finding in observed.refusals if finding.reason == Reason.VOLUME]
    return waiting[0] if waiting and any(not pod.ready for pod in pods) else None


def _sidecar_reason(pods: tuple[PodView, ...]) -> Finding:
    worst = max(pods, key=lambda pod: (pod.restarts, pod.name))
    return first_reason(worst)


def spent(ended: Ended, why: str) -> Ended:
    """The same end, for good: a budget is used up."""
    return Ended(
        outcome=Condition.FAILED,
        fault=ended.fault,
        why=Finding(reason=ended.why.reason, message=f"{ended.why.message}; {why}"),
    )
