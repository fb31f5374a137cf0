"""What to do for a resource, from what is observed: the table of contents of the operator's decisions. Pure.

    deletion      stop pods, sweep etcd, let go
    memory        what the status remembers; an outcome is for ever
    finish        a job that is over: nothing is created again
    attempts      what the pods mean: goes on, succeeded, failed, the next attempt
    children      everything that is no pod; put back when edited
    volumes       whom they belong to, in any state of the job; books that are gone
    certificates  made before they are needed, again before they end
    run           old pods out, then pods of this attempt in, all or none placed (gang)
    pool          the pods of a RolloutPool, each for itself

Every decision that something is over is written into the status before anything is deleted, so a lost write or a
leader that dies in between costs nothing but time. Reading the same world twice gives the same plan.
"""

from __future__ import annotations

from dataclasses import replace

from twinpod.api import names
from twinpod.api.names import Condition, Reason
from twinpod.api.types import RLJob, RolloutPool
from twinpod_operator.nouns import Action, Create, Finding, Observed, Plan, SetFinalizers
from twinpod_operator.policies.attempts import Ended, current, judge, sidecar_restarts
from twinpod_operator.policies.certificates import certificates_due, next_renewal
from twinpod_operator.policies.children import plan_children, relabel
from twinpod_operator.policies.deletion import plan_deletion
from twinpod_operator.policies.events import events
from twinpod_operator.policies.finish import finish
from twinpod_operator.policies.memory import Memory, next_attempt, recall, suspended_attempt
from twinpod_operator.policies.pool import plan_pool
from twinpod_operator.policies.run import RETRY_S, plan_run, plan_stop
from twinpod_operator.policies.volumes import CLAIM, lost_state
from twinpod_operator.render_containers import Platform
from twinpod_operator.status import copy_wake, invalid_status, job_status

__all__ = ["plan"]


def plan(observed: Observed, platform: Platform, now: float) -> Plan:
    """What to do now for one resource."""
    if observed.deleting_since:
        return plan_deletion(observed, platform.deletion_s, now)
    manager = (observed.raw.get("spec") or {}).get("managedBy")
    if manager not in (None, names.MANAGER_NAME):
        return Plan()  # somebody else looks after it
    if observed.resource is None:
        return _refused(observed, Reason.INVALID_SPEC, "\n".join(observed.problems), now)
    if isinstance(observed.resource, RLJob):
        return plan_job(observed, observed.resource, platform, now)
    if isinstance(observed.resource, RolloutPool):
        return _announced(observed, plan_pool(observed, observed.resource, platform, now))
    return _refused(observed, Reason.UNSUPPORTED, "this release of the operator starts no sandbox pods", now)


def plan_job(observed: Observed, job: RLJob, platform: Platform, now: float) -> Plan:
    """What to do now for a valid job."""
    memory = recall(observed)
    if not memory.finished:
        ended = judge(observed, memory, job, now) or _too_long(memory, job, now)
        if ended is not None and (ended.outcome is not None or not job.spec.suspend):
            return _conclude(observed, memory, job, ended, now)
        if job.spec.suspend and _used(observed, memory):
            return _told(observed, suspended_attempt(memory, sidecar_restarts(observed, memory)), job, now, wake=0.0)
    if memory.finished:
        actions, wake = finish(observed, memory, job, now)
        return _told(observed, memory, job, now, actions=actions, wake=wake)
    return _go_on(observed, memory, job, platform, now)


def _go_on(observed: Observed, memory: Memory, job: RLJob, platform: Platform, now: float) -> Plan:
    """The attempt is neither over nor is the job: make what is missing."""
    actions: list[Action] = []
    if names.FINALIZER not in observed.finalizers:
        actions.append(SetFinalizers(finalizers=(*observed.finalizers, names.FINALIZER)))
    actions += relabel(observed)
    lost = lost_state(observed, memory, job)
    notes = (lost,) if lost is not None else ()
    unmade = [(CLAIM, names.state_claim_name(job.metadata.name, observed.uid))] if lost is not None else []
    actions += plan_children(observed, platform, observed.uid, job, unmade=unmade)
    if job.spec.suspend:
        memory = replace(memory, start=0.0, placing_since=0.0, not_before=0.0)
        stop = plan_stop(observed, memory, now, master_first=True)
        notes = (*notes, *stop.notes)
        return _told(observed, memory, job, now, actions=[*actions, *stop.actions], wake=stop.wake, notes=notes)
    if lost is not None and not current(observed, memory):
        memory, stop = replace(memory, placing_since=0.0), plan_stop(observed, memory, now)
        wake, notes = _earliest(stop.wake, RETRY_S, _limit(memory, job, now)), (*notes, *stop.notes)
        return _told(observed, memory, job, now, actions=[*actions, *stop.actions], wake=wake, notes=notes)
    actions += certificates_due(observed, job, platform, now)
    run = plan_run(observed, replace(memory, start=memory.start or now), job, platform, now)
    if run.ended is not None:
        return _conclude(observed, memory, job, run.ended, now)
    actions += [action for action in run.actions if lost is None or not isinstance(action, Create)]
    wake = _earliest(run.wake, _renewal_wake(observed, now), _limit(memory, job, now))
    return _told(observed, run.memory, job, now, actions=actions, wake=wake, notes=(*notes, *run.notes))


def _conclude(observed: Observed, memory: Memory, job: RLJob, ended: Ended, now: float) -> Plan:
    """Write down what has ended; what follows from it is done when that is written."""
    if ended.outcome is not None:
        done = replace(memory, outcome=ended.outcome, verdict=ended.why, completion=now, not_before=0.0)
        if ended.outcome is Condition.FAILED and ended.fault is not None:
            done = replace(done, last_fault=ended.why)
        return _told(observed, done, job, now, wake=0.0)
    following = next_attempt(
        memory,
        fault=ended.fault,
        why=ended.why,
        policy=job.spec.failure_policy,
        sidecars=sidecar_restarts(observed, memory),
        now=now,
        uid=observed.uid,
    )
    return _told(observed, following, job, now, wake=0.0)


def _told(
    observed: Observed,
    memory: Memory,
    job: RLJob,
    now: float,
    *,
    actions: list[Action] | None = None,
    wake: float | None = None,
    notes: tuple[Finding, ...] = (),
) -> Plan:
    status = job_status(observed, memory, job, now, notes)
    said = events(observed.status, status)
    later = copy_wake(observed, memory, status, now)
    return Plan(actions=(*(actions or ()), *said), status=status, wake_after_s=_earliest(wake, later))


def _refused(observed: Observed, reason: Reason, message: str, now: float) -> Plan:
    status = invalid_status(observed, reason.value, message, now)
    return Plan(actions=tuple(events(observed.status, status)), status=status)


def _announced(observed: Observed, made: Plan) -> Plan:
    if made.status is None:
        return made
    return replace(made, actions=(*made.actions, *events(observed.status, made.status)))


def _used(observed: Observed, memory: Memory) -> bool:
    """Pods of this attempt exist or have existed: its names are not to be used again."""
    return bool(current(observed, memory)) or memory.complete_attempt == memory.attempt


def _too_long(memory: Memory, job: RLJob, now: float) -> Ended | None:
    limit = job.spec.active_deadline_seconds
    if limit is None or not memory.start or now < memory.start + limit or job.spec.suspend:
        return None
    why = Finding(reason=Reason.ACTIVE_DEADLINE, message=f"not finished {limit} s after it was started")
    return Ended(outcome=Condition.FAILED, fault=None, why=why)


def _limit(memory: Memory, job: RLJob, now: float) -> float | None:
    limit = job.spec.active_deadline_seconds
    return None if limit is None else (memory.start or now) + limit - now


def _renewal_wake(observed: Observed, now: float) -> float | None:
    due = next_renewal(observed)
    return max(1.0, due - now) if due else None


def _earliest(*times: float | None) -> float | None:
    return min((max(0.0, one) for one in times if one is not None), default=None)
