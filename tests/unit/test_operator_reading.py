"""From the API server's JSON to views: whose fault an end was, which fields are ours, and when a status is written."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from twinpod.api import names
from twinpod_operator.nouns import Fault
from twinpod_operator.ownership import owned_digest, stamped, wanted_digest
from twinpod_operator.reading import event_finding, pod_view
from twinpod_operator.status import patch

STOPPED = {"type": names.QUEUE_STOPPED, "status": "True", "reason": "WorkloadEvictedDueToPreempted"}
TARGET = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}


def pod(deleted: str = "", **status: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "p", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
    if deleted:
        metadata |= {"deletionTimestamp": deleted, "deletionGracePeriodSeconds": 60}
    return {"metadata": metadata, "spec": {}, "status": status}


def ended(code: int, at: str = "2026-01-01T01:00:00Z", **more: Any) -> list[dict[str, Any]]:
    return [{"name": "trainer", "state": {"terminated": {"exitCode": code, "finishedAt": at} | more}}]


def unscheduled(message: str) -> dict[str, Any]:
    said = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod(phase="Pending", conditions=[said])


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        pytest.param(pod(phase="Running"), None, id="runs"),
        pytest.param(pod(phase="Failed", containerStatuses=ended(1)), Fault.APPLICATION, id="crashed"),
        pytest.param(
            pod("2026-01-01T03:01:00Z", phase="Failed", containerStatuses=ended(1)),
            Fault.APPLICATION,
            id="crashed an hour before it was deleted",
        ),
        pytest.param(
            pod("2026-01-01T01:00:59Z", phase="Failed", containerStatuses=ended(143)),
            Fault.INFRASTRUCTURE,
            id="ended because it was deleted",
        ),
        pytest.param(
            pod(phase="Failed", containerStatuses=ended(137), conditions=[TARGET]), Fault.INFRASTRUCTURE, id="disrupted"
        ),
        pytest.param(pod("2026-01-01T01:01:00Z", phase="Running", conditions=[STOPPED]), Fault.QUEUE, id="preempted"),
        pytest.param(
            pod(phase="Failed", reason="Evicted", message="emptyDir usage exceeds the limit"),
            Fault.APPLICATION,
            id="over its own limit",
        ),
        pytest.param(pod(phase="Succeeded", containerStatuses=ended(0)), None, id="succeeded"),
    ],
)
def test_whose_fault_the_end_of_a_pod_was(raw: dict[str, Any], fault: Fault | None) -> None:
    assert pod_view(raw).fault is fault


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (unscheduled("0/2 nodes are available: 2 Insufficient cpu. no new claims to deallocate"), "Unschedulable"),
        (unscheduled("0/2 nodes are available: 2 cannot allocate all claims"), "ClaimUnallocated"),
        (unscheduled("request devices: device class gpu.nvidia.com does not exist"), "DeviceClassMissing"),
        (unscheduled('persistentvolumeclaim "x" not found'), "Unschedulable"),
        (pod(phase="Failed", containerStatuses=ended(137, reason="OOMKilled")), "OOMKilled"),
        (pod(phase="Failed", containerStatuses=ended(2, message="spec.seed: wrong")), "InputError"),
        (pod(phase="Failed", containerStatuses=ended(3, message="an engine fell")), "ContainerCrashed"),
    ],
)
def test_a_pods_first_reason(raw: dict[str, Any], reason: str) -> None:
    assert pod_view(raw).reasons[0].reason == reason


WAITING = [{"name": "trainer", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]


@pytest.mark.parametrize(
    ("status", "reasons"),
    [
        pytest.param(unscheduled("no room")["status"], [], id="it had no node"),
        pytest.param({"phase": "Pending", "containerStatuses": WAITING}, [], id="its image did not come"),
        pytest.param({"phase": "Failed", "containerStatuses": ended(137)}, [], id="it was killed in the end"),
        pytest.param(
            {"phase": "Failed", "containerStatuses": ended(3, "2026-01-01T00:59:59Z")},
            ["ContainerCrashed"],
            id="it had crashed before",
        ),
        pytest.param({"phase": "Running", "conditions": [TARGET]}, ["NodeLost"], id="the node was lost"),
    ],
)
def test_what_a_deleted_pod_waited_for_is_not_why_it_goes(status: dict[str, Any], reasons: list[str]) -> None:
    view = pod_view(pod("2026-01-01T01:01:00Z", **status))
    assert [found.reason for found in view.reasons] == reasons


def test_a_claim_that_a_quota_refuses_is_known_by_an_event_alone() -> None:
    event = {
        "type": "Warning",
        "reason": "FailedResourceClaimCreation",
        "message": "exceeded quota: devices",
        "involvedObject": {"kind": "Pod", "name": "x"},
    }
    found = event_finding(event)
    assert found is not None
    assert found.reason == "QuotaRefused"
    assert event_finding(event | {"reason": "Scheduled"}) is None


def service() -> tuple[dict[str, Any], dict[str, Any]]:
    """A manifest, and the object that the API server makes of it."""
    ports = [{"name": "a", "port": 1, "protocol": "TCP"}, {"name": "b", "port": 2, "protocol": "TCP"}]
    metadata = {"name": "x", "namespace": "n", "labels": {"l": "1"}}
    manifest = stamped({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports}})
    item = {".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}}
    fields = {
        "f:metadata": {"f:labels": {"f:l": {}}, "f:annotations": {f"f:{names.ANNOTATION_REVISION}": {}}},
        "f:spec": {"f:ports": {f'k:{{"port":{port},"protocol":"TCP"}}': item for port in (2, 1)}},
    }
    live = copy.deepcopy(manifest)
    live["metadata"] |= {"uid": "u", "resourceVersion": "7"}
    live["metadata"]["managedFields"] = [
        {"manager": names.FIELD_MANAGER, "operation": "Apply", "fieldsV1": fields},
        {"manager": "kube", "operation": "Update", "fieldsV1": {"f:status": {}}},
    ]
    live["spec"]["clusterIP"] = "10.0.0.1"
    for port in live["spec"]["ports"]:
        port["targetPort"] = port["port"]
    return manifest, live


def test_what_others_add_is_not_ours_and_what_they_change_is_seen() -> None:
    manifest, live = service()
    assert owned_digest(live) == wanted_digest(manifest)
    live["metadata"]["labels"]["theirs"] = "2"
    assert owned_digest(live) == wanted_digest(manifest)
    live["spec"]["ports"][0]["name"] = "edited"
    assert owned_digest(live) != wanted_digest(manifest)
    _, live = service()
    del live["metadata"]["managedFields"][0]["fieldsV1"]["f:metadata"]["f:labels"]  # somebody took it over
    assert owned_digest(live) != wanted_digest(manifest)


def test_the_same_status_gives_no_patch() -> None:
    assert patch({"a": 1}, {"a": 1}) is None
    assert patch({"a": 1}, None) is None
    assert patch({"a": 1, "b": 2}, {"a": 3}) == {"a": 3, "b": None}
