"""What a job's status remembers from one reconcile to the next, because it can be observed nowhere else. Pure.

An attempt is one set of pods. That it has ended is written down *before* anything of it is deleted, so that a write
that is lost changes nothing: whoever looks next sees the same pods and writes the same numbers. Whatever the status
says, an attempt is never older than the newest pod.
"""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass, replace
from typing import Any

from twinpod.api.names import Condition, Reason
from twinpod.api.types import FailurePolicy
from twinpod_operator.nouns import Fault, Finding, Observed
from twinpod_operator.reading import unix

__all__ = ["Memory", "delay_s", "next_attempt", "recall", "stamp", "suspended_attempt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The part of a job's status that decisions read. Times are unix seconds; 0 for none."""

    attempt: int = 1
    application_faults: int = 0
    infrastructure_faults: int = 0
    scheduling_retries: int = 0
    preemptions: int = 0
    complete_attempt: int = 0
    last_fault: Finding | None = None
    not_before: float = 0.0
    placing_since: float = 0.0
    start: float = 0.0
    completion: float = 0.0
    outcome: Condition | None = None  # SUCCEEDED or FAILED, for ever
    verdict: Finding | None = None  # reason and message of the outcome
    suspended: bool = False  # it was suspended when the status was written

    @property
    def finished(self) -> bool:
        """True once the job has an outcome."""
        return self.outcome is not None


def recall(observed: Observed) -> Memory:
    """What the status says, corrected by the pods that are there."""
    status: dict[str, Any] = observed.status or {}
    conditions = {item["type"]: item for item in status.get("conditions") or ()}
    newest = max((pod.attempt for pod in observed.pods), default=1)
    outcome = next(
        (kind for kind in (Condition.SUCCEEDED, Condition.FAILED) if _true(conditions.get(kind.value))),
        None,
    )
    ended = conditions[outcome.value] if outcome is not None else None
    suspended = conditions.get(Condition.SUSPENDED.value)
    return Memory(
        attempt=max(1, int(status.get("attempt", 0)), newest),
        application_faults=int(status.get("applicationFaults", 0)),
        infrastructure_faults=int(status.get("infrastructureFaults", 0)),
        scheduling_retries=int(status.get("schedulingRetries", 0)),
        preemptions=int(status.get("preemptions", 0)),
        complete_attempt=int(status.get("completeAttempt", 0)),
        last_fault=_finding(str(status.get("lastFault", ""))),
        not_before=unix(status.get("notBefore")),
        placing_since=unix(status.get("placingSince")),
        start=unix(status.get("startTime")),
        completion=unix(status.get("completionTime")),
        outcome=outcome,
        verdict=Finding(reason=ended["reason"], message=ended.get("message", "")) if ended else None,
        suspended=_true(suspended),
    )


def next_attempt(
    memory: Memory, *, fault: Fault | None, why: Finding, policy: FailurePolicy, sidecars: int, now: float, uid: str
) -> Memory:
    """The present attempt has ended; the next one starts after a pause that grows with what it costs.

    `fault` None: no fault of anybody, not all pods found a node. `sidecars`: restarts of sidecars in this attempt.
    """
    application, infrastructure = memory.application_faults + sidecars, memory.infrastructure_faults
    retries, preemptions = memory.scheduling_retries, memory.preemptions
    wait = 0.0
    if fault is Fault.APPLICATION:
        application += 1
        wait = delay_s(policy, memory.application_faults + 1)
    elif fault is Fault.INFRASTRUCTURE:
        infrastructure += 1
        wait = delay_s(policy, infrastructure - 1) if infrastructure > 1 else 0.0
    elif fault is Fault.QUEUE:
        preemptions += 1
    else:
        retries += 1
        wait = delay_s(policy, retries) * (1.0 + _spread(uid, memory.attempt))
    return replace(
        memory,
        attempt=memory.attempt + 1,
        application_faults=application,
        infrastructure_faults=infrastructure,
        scheduling_retries=retries,
        preemptions=preemptions,
        last_fault=why,
        not_before=math.ceil(now + wait) if wait else 0.0,
        placing_since=0.0,
    )


def suspended_attempt(memory: Memory, sidecars: int) -> Memory:
    """The present attempt ends as the job is suspended: that costs nothing, but what its sidecars used stays used."""
    return replace(
        memory,
        attempt=memory.attempt + 1,
        application_faults=memory.application_faults + sidecars,
        start=0.0,
        placing_since=0.0,
        not_before=0.0,
    )


def delay_s(policy: FailurePolicy, times: int) -> float:
    """Seconds to wait before the start that follows the `times`-th fault: doubled each time, up to a cap."""
    return float(min(policy.max_backoff_seconds, policy.backoff_seconds * 2 ** min(max(0, times - 1), 30)))


def stamp(seconds: float) -> str | None:
    """RFC 3339 in whole seconds, as Kubernetes writes it; None for 0."""
    if not seconds:
        return None
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _spread(uid: str, attempt: int) -> float:
    """0 to 1, of the job's own: two jobs that stand in each other's way do not come back together."""
    return (sum(uid.encode()) * 31 + attempt * 17) % 97 / 97


def _finding(line: str) -> Finding | None:
    reason, found, message = line.partition(": ")
    return Finding(reason=reason if found else Reason.RESTARTING.value, message=message) if line else None


def _true(condition: dict[str, Any] | None) -> bool:
    return condition is not None and condition.get("status") == "True"
