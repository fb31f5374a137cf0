"""A job that is being deleted. Pure.

Its pods are stopped first, so that nobody writes to etcd any more; then its keys in etcd are swept and the finalizer
goes, and the garbage collector takes the rest. Nothing holds a deletion up for ever: at a deadline the finalizer goes
whatever etcd and the nodes say, and a later sweep by uid takes what was left.
"""

from __future__ import annotations

from twinpod.api import names
from twinpod.api.names import Reason
from twinpod_operator.nouns import Action, Delete, Emit, Observed, Plan, SetFinalizers, Sweep
from twinpod_operator.policies.attempts import OVERDUE_S, may_live

__all__ = ["plan_deletion"]

LOOK_S = 5.0


def plan_deletion(observed: Observed, deadline_s: float, now: float) -> Plan:
    """What to do for a resource whose deletion was asked for; it is over after that many seconds."""
    if names.FINALIZER not in observed.finalizers:
        return Plan()  # others' finalizers hold it; what is ours goes with it
    rest = tuple(one for one in observed.finalizers if one != names.FINALIZER)
    actions: list[Action] = [
        Delete(kind="Pod", name=pod.name, uid=pod.uid) for pod in observed.pods if not pod.deleting
    ]
    alive = [pod for pod in observed.pods if may_live(pod, now)]
    if observed.swept and not alive:
        return Plan(actions=(*actions, SetFinalizers(finalizers=rest)))
    if now >= observed.deleting_since + deadline_s:
        left = ", ".join(pod.name for pod in alive)
        why = f"pods that do not end: {left}" if left else "etcd does not answer"
        said = Emit(type="Warning", reason=Reason.SWEEP_LATER.value, message=f"{why}; its keys in etcd are swept later")
        return Plan(actions=(*actions, said, SetFinalizers(finalizers=rest)))
    wake = [observed.deleting_since + deadline_s - now]
    if alive:
        wake += [pod.delete_by + OVERDUE_S + 1.0 - now for pod in alive if pod.deleting]
    else:
        actions.append(Sweep(namespace=observed.key.namespace, name=observed.key.name, uid=observed.uid))
        wake.append(LOOK_S)
    return Plan(actions=tuple(actions), wake_after_s=max(0.5, min(wake)))
