"""What may be changed in a resource that exists, and when: rules that compare with the old object.

Every field of a spec either takes effect at once, or is refused with the way to change it; none is ignored. A job's
pods read their configuration when they start, so what is in it changes only while the job is suspended; what a run was
begun with never changes. A pool's pods are made alike, so their template changes only while the pool is scaled to 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from twinpod.api.rules import Rule

FIXED_JOB_FIELDS = {
    "model": "the weights of the run were made from it",
    "dataset": "the prompts in the run's books come from it",
    "seed": "the run was begun with it",
    "storage.state": "the run's books are there",
    "storage.snapshots": "the run's snapshots are there",
    "managedBy": "another controller would have to take over the pods",
}
SUSPENDED_JOB_FIELDS = (
    "iterations",
    "algorithm",
    "rollout",
    "reward",
    "hybrid",
    "master",
    "storage.snapshotEvery",
    "storage.keepIterations",
    "priorityClassName",
)
FREE_JOB_FIELDS = (
    "suspend",
    "failurePolicy",
    "ttlSecondsAfterFinished",
    "activeDeadlineSeconds",
    "storage.whenDeleted",
)
# What a local run may change between two starts: each of its stops is a suspension.
CHANGEABLE_WHEN_STOPPED = (
    "metadata.labels",
    "metadata.annotations",
    *(f"spec.{field}" for field in (*SUSPENDED_JOB_FIELDS, *FREE_JOB_FIELDS)),
)
FIXED_POOL_FIELDS = {"job": "its pods joined that job"}
EMPTY_POOL_FIELDS = (
    "accelerators",
    "sharing",
    "deviceClass",
    "sharedMemory",
    "kernelCache",
    "priorityClassName",
    "inference",
    "podPatch",
)
FREE_POOL_FIELDS = ("replicas",)
_OPTIONAL = ("managedBy", "priorityClassName", "podPatch", "sharedMemory", "storage.keepIterations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A field in which two documents differ; None where it is not there."""

    path: str
    old: object
    new: object


def differences(old: object, new: object, path: str = "") -> tuple[Difference, ...]:
    """The innermost fields in which two documents differ, by path. Lists are compared as a whole. Pure."""
    if old == new:
        return ()
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        inner = (differences(old.get(key), new.get(key), f"{path}.{key}" if path else key) for key in keys)
        return tuple(one for part in inner for one in part)
    return (Difference(path=path, old=old, new=new),)


def _same(field: str) -> str:
    """CEL: the field is as it was; an optional one may not come or go either."""
    same = f"self.{field} == oldSelf.{field}"
    if field not in _OPTIONAL:
        return same
    return f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || {same})"


def _unless(field: str, excuse: str, message: str) -> Rule:
    """The field must stay as it is unless the CEL expression `excuse` is true."""
    cel = f"{excuse} || ({_same(field)})" if excuse else _same(field)
    return Rule(path="spec", field=field, cel=cel, holds=lambda self: True, message=message, transition=True)


def _fixed(fields: dict[str, str], kind: str) -> Iterable[Rule]:
    return (_unless(field, "", f"cannot be changed: {why}; make a new {kind}") for field, why in fields.items())


JOB_CHANGES: tuple[Rule, ...] = (
    *_fixed(FIXED_JOB_FIELDS, "RLJob"),
    *(
        _unless(
            field,
            "oldSelf.suspend",
            "cannot be changed while the job runs: its pods read it when they start; set suspend to true first",
        )
        for field in SUSPENDED_JOB_FIELDS
    ),
)
POOL_CHANGES: tuple[Rule, ...] = (
    *_fixed(FIXED_POOL_FIELDS, "RolloutPool"),
    *(
        _unless(
            field,
            "oldSelf.replicas == 0",
            "cannot be changed while the pool has pods: they are made from it; scale the pool to 0 first",
        )
        for field in EMPTY_POOL_FIELDS
    ),
)
