"""From the API server's JSON to the views of `nouns.py`. Pure; the only place that knows where a pod hides its reasons.

A pod says why it does not run in six places: its conditions (Unschedulable, DisruptionTarget), what its containers wait
for (ImagePullBackOff), how they ended (OOMKilled, an exit code and the end of the log), its own reason (Evicted), and
events alone (a volume that cannot be mounted, a claim that a quota refused). Here they become `Finding`s, worst first.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

from twinpod.api import names
from twinpod.api.names import Reason
from twinpod_operator.labelling import controller, wrong_labels
from twinpod_operator.nouns import ChildView, ContainerEnd, DeviceClaimView, Fault, Finding, Manifest, PodView
from twinpod_operator.ownership import data_digest, owned_digest
from twinpod_operator.pod_reasons import end_finding, pod_finding, scheduling_finding, waiting_finding

__all__ = ["child_view", "claim_view", "event_finding", "pod_view", "unix"]

GRACE_S = 30.0  # of a deletion that does not say
_DIGITS = 12  # of the largest number that we write: unix seconds


def unix(stamp: str | None) -> float:
    """Unix seconds of an RFC 3339 time; 0 for none."""
    return datetime.datetime.fromisoformat(stamp).timestamp() if stamp else 0.0


def pod_view(raw: Manifest) -> PodView:
    """What decisions need of a pod."""
    metadata, spec, status = raw["metadata"], raw.get("spec", {}), raw.get("status", {})
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    ends = tuple(_ends(status))
    last_end = max((unix(end.get("finishedAt")) for end in _terminated(status)), default=0.0)
    asked = _deletion_asked(metadata)
    scheduled = bool(spec.get("nodeName"))
    wrong = wrong_labels(raw)
    labels = {**labels, **dict(wrong)}
    return PodView(
        name=metadata["name"],
        uid=metadata["uid"],
        role=labels.get(names.LABEL_ROLE, ""),
        index=_number(labels.get(names.LABEL_INDEX)),
        attempt=_number(labels.get(names.LABEL_ATTEMPT)),
        phase=status.get("phase", "Pending"),
        created=unix(metadata.get("creationTimestamp")),
        node=spec.get("nodeName", ""),
        gates=tuple(gate["name"] for gate in spec.get("schedulingGates") or ()),
        scheduled=scheduled,
        ready=_true(conditions.get("Ready")),
        delete_by=unix(metadata.get("deletionTimestamp")),
        fault=_fault(status, conditions, ends, last_end, asked),
        reasons=tuple(_reasons(status, conditions, ends, scheduled, asked)),
        ends=ends,
        restarts=sum(int(item.get("restartCount", 0)) for item in status.get("initContainerStatuses") or ()),
        template_hash=annotations.get(names.ANNOTATION_TEMPLATE_HASH, ""),
        device_class=labels.get(names.LABEL_DEVICE_CLASS, ""),
        owner_uid=controller(raw)[2] or labels.get(names.LABEL_POOL_UID) or labels.get(names.LABEL_JOB_UID, ""),
        labels_wrong=wrong,
        published=(metadata.get("labels") or {}).get(names.LABEL_PUBLISHED) != "false",
        job_uid=labels.get(names.LABEL_JOB_UID, ""),
        ends_group=annotations.get(names.QUEUE_RETRIABLE) == "false",
        failures=_number(annotations.get(names.ANNOTATION_FAILURES)),
        ended_at=_ended_at(metadata, conditions, last_end) if status.get("phase") in ("Succeeded", "Failed") else 0.0,
    )


def child_view(raw: Manifest, applied: str = "") -> ChildView:
    """What decisions need of a child that is no pod. A Secret's digest is that of its data alone."""
    metadata = raw["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    secret = raw.get("kind") == "Secret"
    return ChildView(
        kind=raw.get("kind", ""),
        name=metadata["name"],
        uid=metadata["uid"],
        revision=annotations.get(names.ANNOTATION_REVISION, ""),
        digest=data_digest(raw.get("data") or {}) if secret else owned_digest(raw),
        applied=applied,
        deleting=bool(metadata.get("deletionTimestamp")),
        renew_at=float(_number(annotations.get(names.ANNOTATION_RENEW_AT))),
        owner_uid=labels.get(names.LABEL_POOL_UID) or labels.get(names.LABEL_JOB_UID, ""),
    )


def claim_view(raw: Manifest) -> DeviceClaimView:
    """A ResourceClaim that was made for a pod; its owner is the pod."""
    metadata = raw["metadata"]
    owners = [owner for owner in metadata.get("ownerReferences") or () if owner.get("kind") == "Pod"]
    return DeviceClaimView(
        name=metadata["name"],
        allocated=bool((raw.get("status") or {}).get("allocation")),
        pod_uid=owners[0]["uid"] if owners else "",
        created=unix(metadata.get("creationTimestamp")),
    )


_EVENTS = {
    "FailedMount": Reason.VOLUME,
    "FailedAttachVolume": Reason.VOLUME,
    "ProvisioningFailed": Reason.VOLUME,
    "FailedCreatePodSandBox": Reason.CREATE_CONTAINER,
    "FailedPrepareDynamicResources": Reason.CLAIM_UNALLOCATED,
    "FailedResourceClaimCreation": Reason.CLAIM_UNALLOCATED,
}


def event_finding(raw: Manifest) -> Finding | None:
    """What only an event says about a pod or a volume claim of ours; None for events that pods say themselves."""
    reason = _EVENTS.get(raw.get("reason", ""))
    if reason is None or raw.get("type") != "Warning":
        return None
    said = " ".join(str(raw.get("message") or raw.get("note") or "").split())
    if reason is Reason.CLAIM_UNALLOCATED and "quota" in said:
        reason = Reason.QUOTA_REFUSED
        said += "; raise the namespace's ResourceQuota for device claims, or lower hybrid.accelerators"
    about = raw.get("involvedObject") or raw.get("regarding") or {}
    return Finding(
        reason=reason.value, message=f"{about.get('kind', '').lower()} {about.get('name', '')}: {said}"[:1024]
    )


def _reasons(
    status: Manifest, conditions: dict[str, Any], ends: tuple[ContainerEnd, ...], scheduled: bool, asked: float
) -> Iterator[Finding]:
    """Worst first: what was done to it, how it ended, what a container waits for, why it has no node.

    Of a pod that somebody deleted only what came before counts: how its containers take it and what it waited for are
    not why it goes.
    """
    if status.get("phase") == "Succeeded":
        return
    yield from pod_finding(status, conditions)
    for end in ends:
        if not asked or end.at < asked:
            yield from end_finding(end)
    if asked:
        return
    for item in _statuses(status):
        yield from waiting_finding(item)
    if not scheduled:
        yield from scheduling_finding(conditions.get("PodScheduled"))


def _deletion_asked(metadata: Manifest) -> float:
    """When, in Unix seconds; 0 while nobody did."""
    deletion, grace = unix(metadata.get("deletionTimestamp")), metadata.get("deletionGracePeriodSeconds")
    return deletion - float(GRACE_S if grace is None else grace) if deletion else 0.0


def _fault(
    status: Manifest, conditions: dict[str, Any], ends: tuple[ContainerEnd, ...], last_end: float, asked: float
) -> Fault | None:
    """Whose fault the end is. What crashed before its deletion was asked for has crashed by itself."""
    failed = status.get("phase") == "Failed"
    if _true(conditions.get(names.QUEUE_STOPPED)):
        return Fault.QUEUE
    if _true(conditions.get("DisruptionTarget")):
        return Fault.INFRASTRUCTURE
    crashed = any(end.code != 0 and not end.sidecar for end in ends)
    if failed and crashed and (not asked or last_end < asked):
        return Fault.APPLICATION
    if failed and status.get("reason") == "Evicted" and "exceed" in str(status.get("message")):
        return Fault.APPLICATION  # of its own limit of a volume or of scratch space
    return Fault.INFRASTRUCTURE if failed or asked else None


def _ended_at(metadata: Manifest, conditions: dict[str, Any], last_end: float) -> float:
    """A pod that ended before any container of it began (refused by its node, evicted) has only its conditions."""
    changed = (unix(condition.get("lastTransitionTime")) for condition in conditions.values())
    return last_end or max((unix(metadata.get("creationTimestamp")), *changed))


def _statuses(status: Manifest) -> Iterator[Manifest]:
    yield from status.get("containerStatuses") or ()
    yield from status.get("initContainerStatuses") or ()


def _terminated(status: Manifest) -> Iterator[Manifest]:
    for item in _statuses(status):
        if ended := (item.get("state") or {}).get("terminated"):
            yield ended


def _ends(status: Manifest) -> Iterator[ContainerEnd]:
    """How containers ended: plain ones first; a sidecar that the kubelet starts again, by its newest end."""
    plain = {item["name"] for item in status.get("containerStatuses") or ()}
    for item in _statuses(status):
        ended = (item.get("state") or {}).get("terminated") or (item.get("lastState") or {}).get("terminated")
        if ended:
            yield ContainerEnd(
                container=item["name"],
                sidecar=item["name"] not in plain,
                code=int(ended.get("exitCode", 0)),
                signal=int(ended.get("signal") or 0),
                reason=ended.get("reason", ""),
                message=str(ended.get("message") or "").strip(),
                at=unix(ended.get("finishedAt")),
            )


def _number(text: str | None) -> int:
    """Of a label or annotation, which people may edit; 0 for what is no number of ours."""
    return int(text) if text is not None and text.isdecimal() and len(text) <= _DIGITS else 0


def _true(condition: Manifest | None) -> bool:
    return condition is not None and condition.get("status") == "True"
