"""The children that are no pods: made once, put back when somebody edits or deletes them. Pure.

What is wanted comes from the renderer; whether a child is as wanted is told by three digests (`ownership.py`). A child
of an older job of the same name carries that job's uid and is not seen here: the API server refuses a second
controller, and the refusal stands on the job until the garbage collector has taken the old one away.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from twinpod.api import names
from twinpod.api.types import RLJob, RolloutPool
from twinpod_operator import kinds
from twinpod_operator.nouns import Action, Apply, ChildView, Delete, Label, Manifest, Observed, PodView
from twinpod_operator.ownership import changeable, stamped, wanted_digest
from twinpod_operator.policies.attempts import overdue
from twinpod_operator.render import render_around, render_pods
from twinpod_operator.render_containers import Platform
from twinpod_operator.render_pool import render_pool

__all__ = [
    "Row",
    "as_wanted",
    "job_children",
    "job_pods",
    "plan_children",
    "pool_children",
    "relabel",
    "row_of",
    "unpublish",
]

KEPT = tuple(kind.kind for kind in kinds.KEPT)  # never deleted for being unknown to the renderer
_MOST = 20_000  # rows' tables that are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one child should be, as digests."""

    kind: str
    name: str
    revision: str
    digest: str


_tables: dict[tuple[str, int, str, Platform], tuple[Row, ...]] = {}  # a memo of a pure function, nothing more


def job_pods(job: RLJob, platform: Platform, uid: str, attempt: int) -> list[Manifest]:
    """Pods of an attempt."""
    return render_pods(job, platform=platform, uid=uid, attempt=attempt)


def job_children(job: RLJob, platform: Platform, uid: str) -> list[Manifest]:
    """Children of a job that are no pods."""
    return render_around(job, platform=platform, uid=uid)


def pool_children(pool: RolloutPool, job: RLJob, platform: Platform, job_uid: str, pool_uid: str) -> list[Manifest]:
    """Children of a pool that are no pods."""
    return render_pool(pool, job, platform=platform, job_uid=job_uid, pool_uid=pool_uid, attempts={})


def plan_children(
    observed: Observed, platform: Platform, job_uid: str, job: RLJob, *, unmade: Collection[tuple[str, str]] = ()
) -> list[Action]:
    """Applies for what is missing or not as wanted; deletes for what is wanted no more.

    `unmade`: kinds and names of what is not to be made when it is missing.
    """
    pool = observed.resource if isinstance(observed.resource, RolloutPool) else None

    def rendered() -> list[Manifest]:
        if pool is not None:
            return pool_children(pool, job, platform, job_uid, observed.uid)
        return job_children(job, platform, observed.uid)

    mark = (observed.uid, observed.generation, job_uid, platform)
    rows = _tables.get(mark) if pool is None else None
    manifests = rendered() if rows is None else []
    if rows is None:
        rows = tuple(row_of(manifest) for manifest in manifests)
        if len(_tables) >= _MOST:
            _tables.clear()
        if pool is None:
            _tables[mark] = rows
    there = {(child.kind, child.name): child for child in observed.children}
    wrong = {(row.kind, row.name) for row in rows if not as_wanted(row, there.get((row.kind, row.name)))}
    wrong -= {key for key in unmade if key not in there}
    if observed.missing_device_class:  # nor is there anybody to take a template of claims, perhaps
        wrong = {(kind, name) for kind, name in wrong if kind != "ResourceClaimTemplate"}
    actions: list[Action] = []
    if wrong:
        for manifest in manifests or rendered():
            key = (manifest["kind"], manifest["metadata"]["name"])
            child = there.get(key)
            if key in wrong and child is None:
                actions.append(Apply(manifest=stamped(manifest)))
            elif key in wrong and child is not None and not child.deleting:
                actions.append(Apply(manifest=stamped(changeable(manifest)), uid=child.uid))
    actions.extend(_unknown(rows, observed.children))
    return actions


def relabel(observed: Observed) -> list[Action]:
    """Labels of pods that somebody edited."""
    edited = [pod for pod in observed.pods if pod.labels_wrong and not pod.deleting]
    return [Label(name=pod.name, uid=pod.uid, labels=pod.labels_wrong) for pod in edited]


def unpublish(pods: Iterable[PodView], now: float) -> list[Action]:
    """Pods that were given up may still live; their host names belong to those that take their places."""
    labels = ((names.LABEL_PUBLISHED, "false"),)
    return [Label(name=pod.name, uid=pod.uid, labels=labels) for pod in pods if pod.published and overdue(pod, now)]


def row_of(manifest: Manifest) -> Row:
    """The digests of what a child should be."""
    ready = stamped(manifest)
    metadata = ready["metadata"]
    revision = metadata["annotations"][names.ANNOTATION_REVISION]
    return Row(kind=ready["kind"], name=metadata["name"], revision=revision, digest=wanted_digest(ready))


def as_wanted(row: Row, child: ChildView | None) -> bool:
    """Whether the child is what it should be."""
    return child is not None and child.revision == row.revision and child.digest in (row.digest, child.applied)


def _unknown(rows: tuple[Row, ...], children: tuple[ChildView, ...]) -> Iterator[Action]:
    known = {(row.kind, row.name) for row in rows}
    for child in children:
        if (child.kind, child.name) not in known and child.kind not in KEPT and not child.deleting:
            yield Delete(kind=child.kind, name=child.name, uid=child.uid)
