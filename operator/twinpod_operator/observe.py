"""From what was seen to the `Observed` of one resource. Reads memory only; asks nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from twinpod.api import names
from twinpod.api.load import ManifestError, check
from twinpod.api.types import RLJob
from twinpod_operator import kinds
from twinpod_operator.nouns import Finding, JobLink, Key, Manifest, Observed, PodView, ProgressView, Resource
from twinpod_operator.policies import gang
from twinpod_operator.reading import unix
from twinpod_operator.world import World


class ProgressBook(Protocol):
    """What etcd said."""

    def view(self, uid: str) -> ProgressView:
        """Of one job."""
        ...

    def swept(self, uid: str) -> bool:
        """Whether the job's keys are gone."""
        ...


class Observer:
    """Life: as long as its world. `refusals` says why newest creates were refused."""

    def __init__(self, world: World, book: ProgressBook, refusals: Callable[[Key], tuple[Finding, ...]]) -> None:
        self._world, self._book, self._refusals = world, book, refusals

    def observe(self, key: Key) -> Observed | None:
        """The world of the resource now; None when it is gone."""
        raw = self._world.get(key)
        if raw is None:
            return None
        metadata, uid = raw["metadata"], raw["metadata"]["uid"]
        resource, problems = typed(raw)
        pods = tuple(self._with_event(pod) for pod in self._world.pods.of(uid))
        job = resource if isinstance(resource, RLJob) else None
        return Observed(
            key=key,
            uid=uid,
            generation=int(metadata.get("generation", 0)),
            raw=raw,
            resource=resource,
            problems=problems,
            deleting_since=unix(metadata.get("deletionTimestamp")),
            finalizers=tuple(metadata.get("finalizers") or ()),
            status=raw.get("status"),
            created=unix(metadata.get("creationTimestamp")),
            pods=pods,
            children=self._world.child_views(uid),
            claims=tuple(claim for pod in pods for claim in self._world.claims.of(pod.uid)),
            refusals=(*self._refusals(key), *self._volume_findings(uid, pods)),
            missing_device_class=self._device_class_missing(resource),
            progress=self._book.view(uid),
            turn=self._world.turn(gang.device_class(job)) if job else None,
            swept=self._book.swept(uid),
            link=self._link(key, raw) if key.kind == kinds.ROLLOUT_POOL.kind else None,
        )

    def _with_event(self, pod: PodView) -> PodView:
        """A pod that waits says in its events alone why a volume or a claim does not come."""
        finding = self._world.events.get(pod.uid)
        if finding is None or pod.phase != "Pending" or pod.deleting:
            return pod
        return replace(pod, reasons=(*pod.reasons, finding))

    def _volume_findings(self, uid: str, pods: tuple[PodView, ...]) -> tuple[Finding, ...]:
        if not any(pod.phase == "Pending" and not pod.deleting for pod in pods):
            return ()
        claims = self._world.children[kinds.CLAIM.kind].of(uid)
        return tuple(found for claim in claims if (found := self._world.events.get(claim.uid)))

    def _device_class_missing(self, resource: Resource | None) -> bool:
        if isinstance(resource, RLJob):
            hybrid = resource.spec.hybrid
            wanted = hybrid.device_class if hybrid.accelerators and hybrid.sharing == "Claim" else ""
        else:
            spec = getattr(resource, "spec", None)
            by_claim = getattr(spec, "accelerators", 0) and getattr(spec, "sharing", "") == "Claim"
            wanted = getattr(spec, "device_class", "") if by_claim else ""
        return bool(wanted) and wanted not in self._world.device_classes

    def _link(self, key: Key, raw: Manifest) -> JobLink:
        name = str((raw.get("spec") or {}).get("job", ""))
        found = self._world.get(Key(kind=kinds.RL_JOB.kind, namespace=key.namespace, name=name))
        if found is None:
            return JobLink(name=name)
        job, _ = typed(found)
        status: dict[str, Any] = found.get("status") or {}
        conditions = {item["type"]: item["status"] for item in status.get("conditions") or ()}
        return JobLink(
            name=name,
            uid=found["metadata"]["uid"],
            job=job if isinstance(job, RLJob) else None,
            suspended=bool((found.get("spec") or {}).get("suspend", False)),
            finished="True" in (conditions.get(names.Condition.SUCCEEDED), conditions.get(names.Condition.FAILED)),
            deleting="deletionTimestamp" in found["metadata"],
            weight_version=int(status.get("weightVersion", 0)),
        )


def typed(raw: Manifest) -> tuple[Resource | None, tuple[str, ...]]:
    """The typed resource, or the problems of what the API server let through (rules are newer than its CRD)."""
    document = {key: value for key, value in raw.items() if key != "status"}
    try:
        return check(document), ()
    except ManifestError as error:
        return None, error.problems
