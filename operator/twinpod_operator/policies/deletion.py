"""A job that is being deleted. Pure.

Its pods are stopped first, so that nobody writes to etcd any more; then its keys in etcd are swept and the finalizer
goes, and the garbage collector takes the rest. At a deadline the finalizer goes whatever etcd and the nodes say, and a
later sweep by uid takes what was left. Only a volume that is to be kept holds it up for longer, until it belongs
to nobody: the garbage collector would take it, too.
"""

from __future__ import annotations

from twinpod.api import names
from twinpod.api.names import Reason
from twinpod_operator.nouns import Action, Delete, Emit, Observed, Plan, PodView, SetFinalizers, Sweep
from twinpod_operator.policies.attempts import OVERDUE_S, may_live
from twinpod_operator.policies.events import events
from twinpod_operator.policies.volumes import align
from twinpod_operator.status import deleting_status

__all__ = ["plan_deletion"]

LOOK_S = 5.0


def plan_deletion(observed: Observed, deadline_s: float, now: float) -> Plan:
    """What to do for a resource whose deletion was asked for; it is over after that many seconds."""
    due = align(observed)
    if names.FINALIZER not in observed.finalizers:
        return Plan(actions=tuple(due))  # others' finalizers hold it; what is ours goes with it
    rest = tuple(one for one in observed.finalizers if one != names.FINALIZER)
    actions: list[Action] = [*due]
    actions += [Delete(kind="Pod", name=pod.name, uid=pod.uid) for pod in observed.pods if not pod.deleting]
    alive = [pod for pod in observed.pods if may_live(pod, now)]
    if observed.swept and not alive and not due:
        return Plan(actions=(*actions, SetFinalizers(finalizers=rest)))
    late = now >= observed.deleting_since + deadline_s
    kept = [action for action in due if "ownerReferences" not in action.manifest["metadata"]]
    if late and not kept:
        return Plan(actions=(*actions, *_left(observed, alive), SetFinalizers(finalizers=rest)))
    wake = [LOOK_S if late else observed.deleting_since + deadline_s - now]
    if alive:
        wake += [pod.delete_by + OVERDUE_S + 1.0 - now for pod in alive if pod.deleting]
    elif not observed.swept:
        actions.append(Sweep(namespace=observed.key.namespace, name=observed.key.name, uid=observed.uid))
        wake.append(LOOK_S)
    status = None
    if due and observed.refusals:
        held = ", ".join(action.manifest["metadata"]["name"] for action in due)
        found = "; ".join(finding.message for finding in observed.refusals)
        status = deleting_status(observed, f"waits until volumes may go or stay as wanted ({held}): {found}", now)
        actions += events(observed.status, status)
    return Plan(actions=tuple(actions), status=status, wake_after_s=max(0.5, min(wake)))


def _left(observed: Observed, alive: list[PodView]) -> list[Emit]:
    """What a person is told of a deletion that has not waited for all of it."""
    if observed.swept and not alive:
        return []
    left = ", ".join(pod.name for pod in alive)
    why = f"pods that do not end: {left}" if left else "etcd does not answer"
    return [Emit(type="Warning", reason=Reason.SWEEP_LATER.value, message=f"{why}; its keys in etcd are swept later")]
