"""The conditions of a resource, computed from the world each time. Pure.

`Ready` gives the reason of the first of Accepted, QuotaReserved, PodsScheduled, WorkersReady and WeightsSynced that is
not true. A condition keeps its `lastTransitionTime` for as long as its status stays the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from twinpod.api import names
from twinpod.api.advice import advice
from twinpod.api.names import Condition, Reason
from twinpod.api.types import RLJob
from twinpod_operator.nouns import Finding, Manifest, Observed, PodView, Reach
from twinpod_operator.policies.attempts import current, queued, wanted_pods
from twinpod_operator.policies.memory import Memory, stamp

CHAIN = (
    Condition.ACCEPTED,
    Condition.QUOTA_RESERVED,
    Condition.PODS_SCHEDULED,
    Condition.WORKERS_READY,
    Condition.WEIGHTS_SYNCED,
)
TRAINING = ("train", "publish", "snapshot", "commit", "export")
MESSAGE = 4096  # most characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One condition before it has times. `status`: True, False, Unknown."""

    kind: Condition
    status: str
    reason: str
    message: str = ""


def fact(kind: Condition, holds: bool | None, reason: str, message: str = "") -> Fact:
    """None: unknown."""
    status = "Unknown" if holds is None else str(holds)
    return Fact(kind=kind, status=status, reason=str(reason), message=message[:MESSAGE])


def told(facts: Iterable[Fact], before: Manifest | None, generation: int, now: float) -> list[Manifest]:
    """The conditions as they stand in a status."""
    old = {item["type"]: item for item in (before or {}).get("conditions") or ()}
    return [_condition(one, old.get(one.kind.value), generation, now) for one in facts]


def _condition(one: Fact, before: dict[str, Any] | None, generation: int, now: float) -> Manifest:
    same = before is not None and before.get("status") == one.status
    return {
        "type": one.kind.value,
        "status": one.status,
        "reason": one.reason,
        "message": one.message,
        "lastTransitionTime": before["lastTransitionTime"] if same and before is not None else stamp(now),
        "observedGeneration": generation,
    }


def ready(facts: Sequence[Fact], when_all: Fact) -> Fact:
    """`when_all`, or the first of the chain that fails."""
    for one in facts:
        if one.kind in CHAIN and one.status != "True":
            return Fact(kind=Condition.READY, status="False", reason=one.reason, message=one.message)
    return when_all


def job_facts(observed: Observed, memory: Memory, job: RLJob, notes: Sequence[Finding]) -> list[Fact]:
    """All conditions of a valid job. `notes`: what the plan waits for, worst first."""
    suspended = job.spec.suspend and not memory.finished
    chain = [
        fact(Condition.ACCEPTED, True, Reason.VALID, "; ".join(f"warning: {line}" for line in advice(job))),
        _quota(observed, memory),
        _scheduled(observed, memory, job, notes),
        _workers(observed, memory, job),
        _synced(observed, memory),
    ]
    if memory.finished and memory.verdict is not None:
        facts = [chain[0], *(_over(one, memory.verdict) for one in chain[1:])]
        ready_one = fact(Condition.READY, False, memory.verdict.reason, memory.verdict.message)
    elif suspended:
        facts = [chain[0], *(_over(one, Finding(reason=Reason.SUSPENDED, message="")) for one in chain[1:])]
        ready_one = fact(Condition.READY, False, Reason.SUSPENDED, _leaving(observed))
    else:
        facts, ready_one = chain, ready(chain, _running(observed))
    pause = Reason.SUSPENDED if suspended else Reason.NOT_SUSPENDED
    return [
        *facts,
        ready_one,
        fact(Condition.SUSPENDED, suspended, pause),
        _degraded(observed, memory, facts, notes),
        _outcome(Condition.SUCCEEDED, memory),
        _outcome(Condition.FAILED, memory),
    ]


def _over(one: Fact, why: Finding) -> Fact:
    return fact(one.kind, False, why.reason, why.message)


def _outcome(kind: Condition, memory: Memory) -> Fact:
    if memory.outcome is kind and memory.verdict is not None:
        return fact(kind, True, memory.verdict.reason, memory.verdict.message)
    return fact(kind, False, Reason.COMPLETED if memory.finished else Reason.UNFINISHED)


def _quota(observed: Observed, memory: Memory) -> Fact:
    kind, pods = Condition.QUOTA_RESERVED, current(observed, memory)
    if not queued(observed):
        return fact(kind, True, Reason.NO_QUEUE)
    if not pods or any(names.QUEUE_GATE in pod.gates for pod in pods):
        said = "waits for the queue; a queue must have plain pods switched on (Kueue: integrations.frameworks: pod)"
        return fact(kind, False, Reason.QUEUED, said)
    return fact(kind, True, Reason.ADMITTED)


def _scheduled(observed: Observed, memory: Memory, job: RLJob, notes: Sequence[Finding]) -> Fact:
    kind, pods, wanted = Condition.PODS_SCHEDULED, current(observed, memory), wanted_pods(job)
    if len(pods) == len(wanted) and all(pod.scheduled for pod in pods):
        return fact(kind, True, Reason.SCHEDULED)
    found = [*observed.refusals, *notes] if len(pods) < len(wanted) else []
    found += [_of(pod, reason) for pod in pods if not pod.scheduled for reason in pod.reasons]
    found.sort(key=lambda one: one.reason == Reason.GATED)  # what holds the others up comes first
    if not found and len(pods) < len(wanted):
        found = [Finding(reason=Reason.PODS_MISSING, message=f"{len(pods)} of {len(wanted)} pods exist")]
    if not found:
        found = [Finding(reason=Reason.STARTING, message="the scheduler has not looked at all pods yet")]
    return fact(kind, False, found[0].reason, _with_last(found[0].message, memory))


def _workers(observed: Observed, memory: Memory, job: RLJob) -> Fact:
    kind, pods, wanted = Condition.WORKERS_READY, current(observed, memory), wanted_pods(job)
    up = [pod for pod in pods if pod.ready]
    if len(up) == len(wanted):
        return fact(kind, True, Reason.PODS_READY)
    found = [_of(pod, reason) for pod in pods if not pod.ready for reason in pod.reasons]
    found += [one for one in observed.refusals if pods]
    waiting = ", ".join(pod.name for pod in pods if not pod.ready)
    starting = Finding(reason=Reason.STARTING, message=f"{len(up)} of {len(wanted)} pods are ready; not yet: {waiting}")
    first = found[0] if found else starting
    return fact(kind, False, first.reason, _with_last(first.message, memory))


def _synced(observed: Observed, memory: Memory) -> Fact:
    kind, progress = Condition.WEIGHTS_SYNCED, observed.progress
    if progress.reach is Reach.UNREACHABLE:
        return fact(kind, None, Reason.STORE_UNREACHABLE, progress.message)
    record, since = progress.record, min((pod.created for pod in current(observed, memory)), default=0.0)
    if record is not None and record.version > 0 and record.updated >= since:
        return fact(kind, True, Reason.SYNCED)
    return fact(kind, False, Reason.NOT_SYNCED, "the first weights of this start are not committed yet")


def _running(observed: Observed) -> Fact:
    record = observed.progress.record
    phase = record.phase if record is not None else ""
    reason = Reason.TRAINING if phase in TRAINING else Reason.ROLLING_OUT if phase else Reason.RUNNING
    return fact(Condition.READY, True, reason)


def _degraded(observed: Observed, memory: Memory, facts: Sequence[Fact], notes: Sequence[Finding]) -> Fact:
    """It runs or will run, and something is not as it should be."""
    kind, progress = Condition.DEGRADED, observed.progress
    if memory.finished:
        if observed.refusals:  # its volumes cannot be given the owner that is wanted
            return fact(kind, True, observed.refusals[0].reason, observed.refusals[0].message)
        return fact(kind, False, Reason.COMPLETED)
    if progress.reach is Reach.UNREACHABLE:
        return fact(kind, True, Reason.STORE_UNREACHABLE, progress.message)
    if progress.record is not None and progress.record.state == "Degraded":
        return fact(kind, True, Reason.STORE_UNREACHABLE, progress.record.message)
    lost = next((note for note in notes if note.reason == Reason.STATE_LOST), None)
    if lost is not None:
        return fact(kind, True, lost.reason, lost.message)
    if observed.refusals:
        return fact(kind, True, observed.refusals[0].reason, observed.refusals[0].message)
    if memory.last_fault is not None and any(one.status != "True" for one in facts if one.kind in CHAIN):
        return fact(kind, True, memory.last_fault.reason, memory.last_fault.message)
    return fact(kind, False, Reason.HEALTHY)


def _leaving(observed: Observed) -> str:
    left = [pod.name for pod in observed.pods if not pod.ended]
    return f"pods that are still ending: {', '.join(left)}" if left else ""


def _of(pod: PodView, found: Finding) -> Finding:
    return Finding(reason=found.reason, message=f"pod {pod.name}: {found.message}")


def _with_last(message: str, memory: Memory) -> str:
    last = memory.last_fault
    if last is None or last.message in message:
        return message
    return f"{message}; the attempt before ended: {last.reason}: {last.message}"
