"""All pods of a job get nodes, or none does. Pure.

Pods that need devices are made behind a scheduling gate of ours. One job at a time per device class has the turn: its
pods are let through once all of them exist, and the turn goes on when all are bound. So two jobs that each need more
than half never hold half each. A set that is not wholly bound at `schedulingDeadlineSeconds`, be it that its pods are
refused, is deleted and made again later, at the end of the line, at most `maxSchedulingRetries` times. Jobs of a
queueing system are placed by it and get no gate of ours; nor do jobs without devices, which would wait in line for
nothing: should two of them hold each other up, the deadline parts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from twinpod.api import names
from twinpod.api.names import Reason
from twinpod.api.types import RLJob
from twinpod_operator.nouns import Contender, Finding, Key, Manifest, Observed, PodView, Ungate
from twinpod_operator.policies.attempts import Ended, current, queued, spent, wanted_pods
from twinpod_operator.policies.memory import Memory

__all__ = ["contender", "gated", "needs_gate", "place", "turn", "unplaced"]

NO_FAULT = (Reason.STORE_UNREACHABLE, Reason.NAMESPACE_TERMINATING)  # refusals that wait without a deadline


def needs_gate(observed: Observed, job: RLJob) -> bool:
    """Devices are what jobs can deadlock over; without them pods go straight to the scheduler."""
    return job.spec.hybrid.accelerators > 0 and not queued(observed)


def device_class(job: RLJob) -> str:
    """What the job waits for: one line a class; jobs that take whole nodes stand in one line together."""
    return "whole-node" if job.spec.hybrid.sharing == "WholeNode" else job.spec.hybrid.device_class


def gated(manifest: Manifest, job: RLJob, *, wait: bool) -> Manifest:
    """The pod behind our gate, with the label that says which line it stands in; or without our gate."""
    metadata, spec = dict(manifest["metadata"]), dict(manifest["spec"])
    gates = [gate for gate in spec.pop("schedulingGates", []) if gate["name"] != names.GANG_GATE]
    if wait:
        metadata["labels"] = {**metadata.get("labels", {}), names.LABEL_DEVICE_CLASS: device_class(job)}
        gates.append({"name": names.GANG_GATE})
    if gates:
        spec["schedulingGates"] = gates
    return {**manifest, "metadata": metadata, "spec": spec}


def contender(key: Key, pods: Iterable[PodView]) -> Contender | None:
    """The job in its line; None when it has no pods behind the gate and none let through without a node."""
    alive = [pod for pod in pods if not pod.ended and not pod.deleting and pod.device_class]
    if not alive:
        return None
    newest = max(pod.attempt for pod in alive)
    alive = [pod for pod in alive if pod.attempt == newest]
    behind = [pod for pod in alive if names.GANG_GATE in pod.gates]
    through = [pod for pod in alive if names.GANG_GATE not in pod.gates]
    unbound = [pod for pod in through if not pod.scheduled]
    if not behind and not unbound:
        return None
    since = max(pod.created for pod in alive)
    return Contender(since=since, key=key, device_class=alive[0].device_class, holding=bool(through))


def turn(contenders: Iterable[Contender]) -> Mapping[str, Key]:
    """Who has the turn, by device class: who holds it, else who has waited longest."""
    result: dict[str, Contender] = {}
    for one in sorted(contenders, key=lambda one: (not one.holding, one)):
        result.setdefault(one.device_class, one)
    return {name: one.key for name, one in result.items()}


def place(observed: Observed, memory: Memory, job: RLJob, now: float) -> tuple[list[Ungate], Memory, Ended | None]:
    """Pods to let through, when placing began, and the end of the attempt when it took too long."""
    pods = current(observed, memory)
    there = {(pod.role, pod.index) for pod in pods}
    whole = all(wanted in there for wanted in wanted_pods(job))
    behind = [pod for pod in pods if names.GANG_GATE in pod.gates]
    if whole and all(pod.scheduled for pod in pods):
        return [], replace(memory, placing_since=memory.placing_since or now), None
    ungate: list[Ungate] = []
    if whole and behind and (observed.turn == observed.key or len(behind) < len(pods)):
        ungate = [Ungate(name=pod.name, uid=pod.uid) for pod in behind]
    waiting = (bool(behind) and not ungate) or any(names.QUEUE_GATE in pod.gates for pod in pods)
    refused = any(finding.reason not in NO_FAULT for finding in observed.refusals)
    if (waiting and whole) or (not pods and not refused and not memory.placing_since):
        return ungate, replace(memory, placing_since=0.0), None
    since = memory.placing_since or now
    deadline = since + job.spec.failure_policy.scheduling_deadline_seconds
    memory = replace(memory, placing_since=since)
    if now < deadline:
        return ungate, memory, None
    return [], memory, unplaced(_why(observed, pods, whole, job), memory, job)


def unplaced(why: Finding, memory: Memory, job: RLJob) -> Ended:
    """The scheduling deadline has passed: the attempt is over, and with the last of the retries the job."""
    ended = Ended(outcome=None, fault=None, why=why)
    most = job.spec.failure_policy.max_scheduling_retries
    if memory.scheduling_retries < most:
        return ended
    return spent(ended, f"all {most} scheduling retries are used up (failurePolicy.maxSchedulingRetries)")


def _why(observed: Observed, pods: tuple[PodView, ...], whole: bool, job: RLJob) -> Finding:
    seconds = job.spec.failure_policy.scheduling_deadline_seconds
    found = (
        [*observed.refusals] if not whole else [reason for pod in pods if not pod.scheduled for reason in pod.reasons]
    )
    told = f": {found[0].message}" if found else ""
    reason = found[0].reason if found else Reason.SCHEDULING_DEADLINE.value
    return Finding(reason=reason, message=f"not all pods had a node after {seconds} s{told}")
