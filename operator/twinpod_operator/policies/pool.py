"""The pods of a RolloutPool, each for itself. Pure.

`spec.replicas` belongs to whoever scales; it is read and never written. Indices from 0 are wanted; the highest leave
first, by a plain deletion: the half drains at SIGTERM and gives back what it has generated. A pod that ended is
replaced under the next name of its index after a pause that grows; it is deleted once its replacement exists, so its
number is never forgotten. When more than the job's `maxRestarts` ended soon, one after the other, the index is given
up: the last of them stays to be looked at, and scaling it away and back begins anew. An index is taken again only when
nothing of it may live any more.
No pods without a running job: one that does not exist yet, is suspended, being deleted or over, has an empty pool.
"""

from __future__ import annotations

from dataclasses import replace

from twinpod.api import names
from twinpod.api.names import Reason
from twinpod.api.types import RLJob, RolloutPool
from twinpod_operator.nouns import Action, Create, Delete, Fault, Finding, JobLink, Observed, Plan, PodView, Prove
from twinpod_operator.policies.attempts import OVERDUE_S, input_error, may_live
from twinpod_operator.policies.children import plan_children, relabel, unpublish
from twinpod_operator.policies.run import RETRY_S, class_missing
from twinpod_operator.render_containers import Platform
from twinpod_operator.render_pool import render_pool
from twinpod_operator.status import pool_status

__all__ = ["plan_pool"]

BACKOFF_S, MOST_BACKOFF_S = 5.0, 300.0
LASTED_S = 600.0  # a pod that lived as long is replaced at once


def plan_pool(observed: Observed, pool: RolloutPool, platform: Platform, now: float) -> Plan:
    """What to do now for a valid pool."""
    link = observed.link or JobLink(name=pool.spec.job)
    waits = _waits(link)
    job = link.job
    wanted = 0 if waits is not None or job is None else pool.spec.replicas
    actions: list[Action] = []
    if job is not None and waits is None:
        children = replace(observed, resource=pool)
        actions += plan_children(children, platform, link.uid, job)
    actions += relabel(observed)
    actions += _leaving(observed.pods, wanted, link)
    actions += unpublish(observed.pods, now)
    given_up = [] if job is None else _given_up(observed.pods, wanted, job)
    made, wake = ([], None) if job is None else _arriving(observed, pool, job, link, platform, wanted, now)
    lacking = class_missing(pool.spec.device_class, "") if made and observed.missing_device_class else None
    if lacking is not None:
        made, wake = [], RETRY_S
    numbers = {pod.index: 0 for pod in observed.pods}
    for pod in observed.pods:
        numbers[pod.index] = max(numbers[pod.index], pod.attempt)
    status = pool_status(
        observed,
        waits=waits or lacking or next(iter(given_up), None),
        wanted=wanted,
        attempts=sum(numbers.values()),
        weight_version=link.weight_version if any(pod.ready for pod in observed.pods) else 0,
        now=now,
    )
    return Plan(actions=(*actions, *made), status=status, wake_after_s=wake)


def _waits(link: JobLink) -> Finding | None:
    """Why the pool is empty whatever its replicas say."""
    if not link.uid:
        return Finding(reason=Reason.JOB_MISSING, message=f'there is no RLJob "{link.name}" in this namespace yet')
    if link.finished or link.deleting:
        return Finding(reason=Reason.JOB_FINISHED, message=f'RLJob "{link.name}" is over')
    if link.suspended:
        return Finding(reason=Reason.JOB_SUSPENDED, message=f'RLJob "{link.name}" is suspended')
    if link.job is None:
        return Finding(reason=Reason.JOB_MISSING, message=f'RLJob "{link.name}" is not valid; see its conditions')
    return None


def _leaving(pods: tuple[PodView, ...], wanted: int, link: JobLink) -> list[Action]:
    """Pods that are too many, of another job's time, or replaced; the highest index first."""
    newest: dict[int, int] = {}
    for pod in pods:
        newest[pod.index] = max(newest.get(pod.index, 0), pod.attempt)
    gone = [
        pod
        for pod in pods
        if not pod.deleting and (pod.index >= wanted or pod.job_uid != link.uid or pod.attempt < newest[pod.index])
    ]
    gone.sort(key=lambda pod: (-pod.index, pod.attempt))
    return [Delete(kind="Pod", name=pod.name, uid=pod.uid) for pod in gone]


def _arriving(
    observed: Observed, pool: RolloutPool, job: RLJob, link: JobLink, platform: Platform, wanted: int, now: float
) -> tuple[list[Action], float | None]:
    """Pods to create, and when the next one may be."""
    attempts: dict[int, int] = {}
    failures: dict[int, int] = {}
    wake: list[float] = []
    there = _by_index(observed.pods)
    for index in range(wanted):
        own = there.get(index, [])
        alive = [pod for pod in own if may_live(pod, now)]
        if alive:
            wake += [max(0.5, pod.delete_by + OVERDUE_S + 1.0 - now) for pod in alive if pod.deleting]
            continue
        last = _newest(own)
        if last is None:
            attempts[index] = 0
        elif _spent(last, job):
            continue
        elif (pause := _pause_s(last, now)) > 0:
            wake.append(pause)
        else:
            attempts[index], failures[index] = last.attempt + 1, _failures(last)
    if not attempts:
        return [], min(wake, default=None)
    manifests = render_pool(pool, job, platform=platform, job_uid=link.uid, pool_uid=observed.uid, attempts=attempts)
    created: list[Action] = []
    for manifest in manifests:
        metadata = manifest["metadata"]
        if manifest["kind"] == "Pod":
            if failures.get(index := int(metadata["labels"][names.LABEL_INDEX])):
                metadata["annotations"][names.ANNOTATION_FAILURES] = str(failures[index])
            created.append(Create(manifest=manifest))
    if pool.spec.pod_patch is not None and not observed.pods and created:
        created.insert(0, Prove(manifest=manifests[-1]))  # the others differ in their names alone
    return created, min(wake, default=None)


def _given_up(pods: tuple[PodView, ...], wanted: int, job: RLJob) -> list[Finding]:
    """Indices that are not taken again, and why."""
    found = []
    there = _by_index(pods)
    for index in range(wanted):
        last = _newest(there.get(index, []))
        if last is not None and _spent(last, job):
            why = last.reasons[0].message if last.reasons else "it ended"
            reason, because = Reason.BUDGET_SPENT, f"{_failures(last)} in a row ended soon"
            if input_error(last):
                reason, because = Reason.INPUT_ERROR, "a wrong input is not tried again"
            message = f"pod {last.name}: {why}; {because}; scale it away and back to try again"
            found.append(Finding(reason=reason.value, message=message))
    return found


def _by_index(pods: tuple[PodView, ...]) -> dict[int, list[PodView]]:
    found: dict[int, list[PodView]] = {}
    for pod in pods:
        found.setdefault(pod.index, []).append(pod)
    return found


def _newest(pods: list[PodView]) -> PodView | None:
    return max(pods, key=lambda pod: pod.attempt, default=None)


def _spent(last: PodView, job: RLJob) -> bool:
    spent = input_error(last) or _failures(last) > job.spec.failure_policy.max_restarts
    return last.ended and not last.deleting and spent


def _failures(last: PodView) -> int:
    """How many pods of an index ended soon, one after the other, up to this one. A queue's preemption is no failure."""
    if last.fault is Fault.QUEUE:
        return last.failures
    soon = last.ended and last.ended_at - last.created <= LASTED_S
    return last.failures + 1 if soon else 0


def _pause_s(last: PodView, now: float) -> float:
    """Seconds until an index may be taken again; only pods that ended soon make one wait."""
    if not (failures := _failures(last)):
        return 0.0
    return last.ended_at + min(MOST_BACKOFF_S, BACKOFF_S * 2.0 ** min(failures - 1, 20)) - now
