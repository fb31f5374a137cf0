"""Statuses, computed from the world and what the last status remembers. Pure; the very same status gives no patch.

What a job remembers (`policies/memory.py`) and what it shows stand in one record. What the master tells (iteration,
reward, phase, weight version) is copied at most every five seconds unless something else changes too; with etcd down
the phase is `Unknown` and the numbers, which are of committed iterations, stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from twinpod.api import names
from twinpod.api.names import Condition, Reason
from twinpod.api.types import RLJob
from twinpod_operator.conditions import Fact, fact, job_facts, told
from twinpod_operator.nouns import Finding, Manifest, Observed, Reach
from twinpod_operator.policies.attempts import current, sidecar_restarts, wanted_pods
from twinpod_operator.policies.memory import Memory, stamp
from twinpod_operator.reading import unix

__all__ = ["copy_wake", "deleting_status", "invalid_status", "job_status", "patch"]

PROGRESS_S = 5.0  # least seconds between two copies of what the master tells
_COPIED = ("iteration", "reward", "phase", "weightVersion")


def job_status(observed: Observed, memory: Memory, job: RLJob, now: float, notes: Sequence[Finding] = ()) -> Manifest:
    """The whole status of a valid job."""
    before = observed.status or {}
    pods, spec = current(observed, memory), job.spec.hybrid
    facts = job_facts(observed, memory, job, notes)
    last = memory.last_fault
    status: dict[str, Any] = {
        "conditions": told(facts, before, observed.generation, now),
        "observedGeneration": observed.generation,
        "pods": f"{sum(pod.ready for pod in pods)}/{len(wanted_pods(job))}",
        "accelerators": spec.replicas * spec.accelerators,
        "sharing": spec.sharing if spec.accelerators else "CPU",
        "restarts": _restarts(observed, memory, before),
        "attempt": memory.attempt,
        "applicationFaults": memory.application_faults,
        "infrastructureFaults": memory.infrastructure_faults,
        "schedulingRetries": memory.scheduling_retries,
        "preemptions": memory.preemptions,
        "completeAttempt": memory.complete_attempt,
        "lastFault": f"{last.reason}: {last.message}"[:2048] if last is not None else "",
        "notBefore": stamp(memory.not_before),
        "placingSince": stamp(memory.placing_since),
        "startTime": stamp(memory.start),
        "completionTime": stamp(memory.completion),
    }
    status = {key: value for key, value in status.items() if value is not None}
    return {**status, **_copied(observed, memory, status, before, now)}


def copy_wake(observed: Observed, memory: Memory, status: Manifest, now: float) -> float | None:
    """Seconds until what was held back from `status` is to be copied; None when it says all that the master tells."""
    fresh = _told_by_master(observed, memory, status)
    if all(status.get(key) == value for key, value in fresh.items()):
        return None
    return max(0.0, unix(status.get("progressTime")) + PROGRESS_S - now)


def invalid_status(observed: Observed, reason: str, message: str, now: float) -> Manifest:
    """The status of a resource that cannot be acted on: what it remembers stays, nothing of it runs anew."""
    facts = [
        fact(Condition.ACCEPTED, False, reason, message),
        fact(Condition.READY, False, reason, message),
    ]
    return _changed(observed, facts, now)


def deleting_status(observed: Observed, message: str, now: float) -> Manifest:
    """The status of a resource whose deletion is held up."""
    return _changed(observed, [fact(Condition.READY, False, Reason.DELETING, message)], now)


def _changed(observed: Observed, facts: list[Fact], now: float) -> Manifest:
    """The status as it stands, but for these conditions."""
    before = observed.status or {}
    new = told(facts, before, observed.generation, now)
    kept = [item for item in before.get("conditions") or () if item["type"] not in {one["type"] for one in new}]
    return {**before, "conditions": [*new, *kept], "observedGeneration": observed.generation}


def patch(before: Manifest | None, after: Manifest | None) -> Manifest | None:
    """JSON merge patch of the status, or None when nothing is to be written."""
    old, new = before or {}, after or {}
    if after is None or old == new:
        return None
    changed = {key: value for key, value in new.items() if old.get(key) != value}
    return {**changed, **dict.fromkeys(old.keys() - new.keys())}


def _restarts(observed: Observed, memory: Memory, before: Manifest) -> int:
    """What a sidecar does beside a job that has succeeded is no restart of the job."""
    if memory.outcome is Condition.SUCCEEDED and "restarts" in before:
        return int(before["restarts"])
    return memory.application_faults + sidecar_restarts(observed, memory)


def _copied(observed: Observed, memory: Memory, status: Manifest, before: Manifest, now: float) -> Manifest:
    """What the master tells; held back when it would be the only change and the last copy is fresh."""
    kept = {key: before[key] for key in (*_COPIED, "progressTime") if key in before}
    fresh = _told_by_master(observed, memory, before)
    if all(kept.get(key) == value for key, value in fresh.items()):
        return kept
    rest = {key: value for key, value in before.items() if key not in kept}
    soon = now < unix(before.get("progressTime")) + PROGRESS_S
    if soon and rest == status:
        return kept
    return {**fresh, "progressTime": stamp(now)}


def _told_by_master(observed: Observed, memory: Memory, before: Manifest) -> Manifest:
    progress, record = observed.progress, observed.progress.record
    values = {
        "iteration": int(before.get("iteration", 0)),
        "reward": str(before.get("reward", "")),
        "phase": str(before.get("phase", "")),
        "weightVersion": int(before.get("weightVersion", 0)),
    }
    if memory.finished:
        values["phase"] = "" if memory.outcome is Condition.FAILED else "done"
    elif progress.reach is Reach.UNREACHABLE:
        values["phase"] = "Unknown"
    elif progress.reach is Reach.NOT_LOOKED or record is None:
        values["phase"] = ""
    else:
        values["phase"] = record.phase
    if record is not None:
        values["iteration"] = max(0, record.iteration - 1)  # the one under way is not committed
        values["weightVersion"] = record.version
        if not math.isnan(record.reward):
            values["reward"] = f"{record.reward:.4f}"
    return values


def pool_status(
    observed: Observed, *, waits: Finding | None, wanted: int, attempts: int, weight_version: int, now: float
) -> Manifest:
    """The whole status of a valid pool. `waits`: why it has no pods although it should; `attempts`: pods replaced."""
    pods = [pod for pod in observed.pods if not pod.ended]
    up = [pod for pod in pods if pod.ready and not pod.deleting]
    first = waits or next(iter(observed.refusals), None)
    if first is None:
        found = [
            Finding(reason=reason.reason, message=f"pod {pod.name}: {reason.message}")
            for pod in observed.pods
            if not pod.ready and not pod.deleting
            for reason in pod.reasons
        ]
        first = found[0] if found else None
    if first is None and (len(up) != wanted or len(pods) != wanted):
        first = Finding(reason=Reason.SCALING, message=f"{len(up)} of {wanted} pods are ready, {len(pods)} exist")
    facts = [
        fact(Condition.ACCEPTED, True, Reason.VALID),
        fact(Condition.READY, False, first.reason, first.message)
        if first is not None
        else fact(Condition.READY, True, Reason.PODS_READY),
    ]
    return {
        "conditions": told(facts, observed.status, observed.generation, now),
        "observedGeneration": observed.generation,
        "replicas": len(pods),
        "readyReplicas": len(up),
        "restarts": attempts,
        "weightVersion": weight_version,
        "selector": f"{names.LABEL_POOL_UID}={observed.uid}",
    }
