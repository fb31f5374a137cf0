"""What cannot be changed, what was changed by others and what is refused, on a real API server; pods are played."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import control_plane, namespace
from tests.cluster.operator_scene import USER, OperatorScene, scene
from tests.cluster.playing import leave, pod_names

from twinpod.api import names
from twinpod.api.names import Reason

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
__all__ = ["control_plane", "scene"]
DEVICES = {"accelerators": 2, "deviceClass": "fake.twinpod.dev", "sharedMemory": "64Mi"}
PODS = ["x-hybrid-0-a1", "x-master-a1"]
RESIZABLE = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "resizable"},
    "provisioner": "nobody.twinpod.dev",
    "allowVolumeExpansion": True,
}


@pytest.fixture(scope="module")
def leading(scene: OperatorScene) -> Iterator[None]:
    replica = scene.lead()
    yield
    replica.stop()
    assert "Traceback" not in replica.text


@pytest.fixture
def home(control_plane: Cluster) -> Iterator[str]:
    with namespace(control_plane) as name:
        yield name


def patch(scene: OperatorScene, home: str, kind: str, name: str, body: dict[str, Any], *more: str) -> None:
    scene.cluster.kubectl("patch", kind, name, "-n", home, "--type=merge", "-p", json.dumps(body), *more)


def made(scene: OperatorScene, home: str, *pods: str) -> None:
    """These pods and no others are there, and the status knows it."""
    scene.cluster.wait("pods", lambda: pod_names(scene, home) == sorted(pods))
    scene.cluster.wait("told", lambda: bool(scene.conditions(home, "x")))


def says(scene: OperatorScene, home: str, reason: str, *parts: str, kind: str = "Ready") -> None:
    """The job's condition comes to have that reason and to say all of that."""

    def told() -> bool:
        found = scene.conditions(home, "x").get(kind, ("", "", ""))
        return found[1] == reason and all(part in found[2] for part in parts)

    scene.cluster.wait(f"{reason} on the job", told, timeout_s=20)


def claim(scene: OperatorScene, home: str, what: str = "state") -> dict[str, Any]:
    items = scene.cluster.get("pvc", "-l", f"{names.LABEL_JOB}=x", namespace=home)["items"]
    (found,) = [item for item in items if f"-{what}-" in item["metadata"]["name"]]
    return dict(found)


def owned(scene: OperatorScene, home: str) -> list[bool]:
    items = scene.cluster.get("pvc", "-l", f"{names.LABEL_JOB}=x", namespace=home)["items"]
    return ["ownerReferences" in item["metadata"] for item in items]


def exists(scene: OperatorScene, home: str, kind: str, name: str) -> bool:
    return scene.cluster.kubectl("get", kind, name, "-n", home, check=False).returncode == 0


def refused(scene: OperatorScene, home: str, mark: int, resource: str) -> list[str]:
    """What the operator was refused since the mark."""
    return [
        f"{one.verb} {one.name} {one.code}"
        for one in scene.cluster.audit(mark)
        if one.user == USER and one.writes and one.namespace == home and one.resource == resource and one.code >= 400
    ]


def complete(scene: OperatorScene, home: str) -> None:
    """The pods run, the master ends well, and the job has succeeded."""
    for name in PODS:
        scene.play(home, name)
    scene.play(home, "x-master-a1", "Succeeded")
    scene.cluster.wait("succeeded", lambda: scene.conditions(home, "x")["Succeeded"][0] == "True")


def test_a_job_whose_older_one_is_not_gone_yet_gets_no_pods_before_the_collector_has_been(
    scene: OperatorScene, leading: None, home: str
) -> None:
    theirs = {names.LABEL_MANAGED_BY: names.FIELD_MANAGER, names.LABEL_JOB: "x", names.LABEL_JOB_UID: "of-an-older-one"}
    old = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x-job", "labels": theirs}, "data": {}}
    scene.cluster.apply(old, namespace=home)
    scene.job("x", home)
    says(scene, home, Reason.NAME_TAKEN, "is left of another job")
    assert pod_names(scene, home) == []
    assert exists(scene, home, "service", "x"), "the rest is there"
    scene.cluster.kubectl("delete", "configmap", "x-job", "-n", home)
    made(scene, home, *PODS)
    scene.cluster.wait("no complaint", lambda: scene.conditions(home, "x")["Degraded"][0] == "False")


@pytest.mark.parametrize(("first", "then"), [("Delete", "Retain"), ("Retain", "Delete")])
def test_a_finished_job_s_volumes_obey_what_is_asked_for_last(
    scene: OperatorScene, leading: None, home: str, first: str, then: str
) -> None:
    scene.job("x", home, storage={"whenDeleted": first})
    made(scene, home, *PODS)
    assert owned(scene, home) == [first == "Delete"] * 2
    complete(scene, home)
    patch(scene, home, "rlj", "x", {"spec": {"storage": {"whenDeleted": then}}})
    scene.cluster.kubectl("delete", "rlj", "x", "-n", home, "--wait=false")
    scene.cluster.wait("claims are in line, or gone", lambda: owned(scene, home) in ([then == "Delete"] * 2, []))
    leave(scene, home, *PODS)
    scene.cluster.wait("gone", lambda: not exists(scene, home, "rlj", "x"), timeout_s=60)
    scene.cluster.wait("the collector has been", lambda: not exists(scene, home, "configmap", "x-job"), timeout_s=60)

    def kept() -> list[bool]:
        found = scene.cluster.get("pvc", "-l", f"{names.LABEL_JOB}=x", namespace=home)["items"]
        return ["deletionTimestamp" not in item["metadata"] for item in found]

    if then == "Retain":
        assert kept() == [True, True]
    else:
        scene.cluster.wait("both claims go", lambda: not any(kept()))


def test_a_claim_that_was_enlarged_is_left_so_and_its_labels_and_owner_are_still_ours(
    scene: OperatorScene, leading: None, home: str
) -> None:
    scene.cluster.apply(RESIZABLE)
    scene.job("x", home, storage={"state": {"storageClassName": "resizable"}})
    made(scene, home, *PODS)
    name = claim(scene, home)["metadata"]["name"]
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{home}-state"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "resizable",
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": "/nowhere"},
            "claimRef": {"namespace": home, "name": name},
        },
    }
    scene.cluster.apply(volume)
    scene.cluster.wait("bound", lambda: claim(scene, home)["status"]["phase"] == "Bound")
    mark = scene.cluster.audit_mark()
    patch(scene, home, "pvc", name, {"spec": {"resources": {"requests": {"storage": "9Gi"}}}})
    patch(scene, home, "pvc", name, {"metadata": {"labels": {names.LABEL_INSTANCE: "another"}}})
    scene.cluster.wait(
        "the label is back", lambda: claim(scene, home)["metadata"]["labels"][names.LABEL_INSTANCE] == "x"
    )
    patch(scene, home, "rlj", "x", {"spec": {"storage": {"whenDeleted": "Delete"}}})
    scene.cluster.wait("owned", lambda: owned(scene, home) == [True, True])
    patch(scene, home, "rlj", "x", {"spec": {"storage": {"whenDeleted": "Retain"}}})
    scene.cluster.wait("let go", lambda: owned(scene, home) == [False, False])
    assert claim(scene, home)["spec"]["resources"]["requests"]["storage"] == "9Gi"
    assert scene.quiet(3)
    assert refused(scene, home, mark, "persistentvolumeclaims") == []
    scene.cluster.kubectl("delete", "pv", f"{home}-state", "--wait=false")


def test_a_state_claim_that_is_gone_is_told_and_found_again_when_it_is_put_back(
    scene: OperatorScene, leading: None, home: str
) -> None:
    scene.job("x", home)
    made(scene, home, *PODS)
    cluster = scene.cluster
    cluster.wait("all have existed", lambda: cluster.get("rlj", "x", namespace=home)["status"]["completeAttempt"] == 1)
    name = claim(scene, home)["metadata"]["name"]
    patch(scene, home, "rlj", "x", {"spec": {"suspend": True}})
    cluster.wait("no pods", lambda: scene.pods(home) == [])
    cluster.kubectl("delete", "pvc", name, "-n", home, "--wait=false")
    cluster.wait("the claim is gone", lambda: not exists(scene, home, "pvc", name))
    patch(scene, home, "rlj", "x", {"spec": {"suspend": False}})
    uid = cluster.get("rlj", "x", namespace=home)["metadata"]["uid"]
    says(scene, home, Reason.STATE_LOST, name, f"{names.LABEL_JOB_UID}={uid}")
    assert scene.quiet(2)
    assert not exists(scene, home, "pvc", name), "nothing empty in its place"
    assert scene.pods(home) == []
    back = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "labels": {names.LABEL_JOB_UID: uid}},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}},
    }
    cluster.apply(back, namespace=home)
    patch(scene, home, "rlj", "x", {"metadata": {"annotations": {"look": "again"}}})
    made(scene, home, "x-hybrid-0-a2", "x-master-a2")
    assert claim(scene, home)["spec"]["resources"]["requests"]["storage"] == "2Gi"


def test_a_job_that_is_given_other_devices_while_suspended_gets_them(
    scene: OperatorScene, leading: None, home: str
) -> None:
    cluster = scene.cluster
    scene.job("x", home, hybrid=DEVICES)
    made(scene, home, *PODS)
    mark = cluster.audit_mark()
    patch(scene, home, "rlj", "x", {"spec": {"suspend": True}})
    cluster.wait("no pods", lambda: scene.pods(home) == [])
    patch(scene, home, "rlj", "x", {"spec": {"hybrid": {"accelerators": 4}}})
    patch(scene, home, "rlj", "x", {"spec": {"suspend": False}})
    made(scene, home, "x-hybrid-0-a2", "x-master-a2")
    (template,) = cluster.get("resourceclaimtemplates", namespace=home)["items"]
    assert template["spec"]["spec"]["devices"]["requests"][0]["exactly"]["count"] == 4
    (pod,) = [pod for pod in scene.pods(home) if pod["metadata"]["name"] == "x-hybrid-0-a2"]
    assert pod["spec"]["resourceClaims"][0]["resourceClaimTemplateName"] == template["metadata"]["name"]
    assert refused(scene, home, mark, "resourceclaimtemplates") == []


def test_a_pod_patch_is_proved_before_any_pod_is_made(scene: OperatorScene, leading: None, home: str) -> None:
    cluster = scene.cluster
    lost = {"spec": {"containers": [{"name": "trainer", "volumeMounts": [{"name": "lost", "mountPath": "/lost"}]}]}}
    job = scene.job("x", home, hybrid={"podPatch": lost})
    says(scene, home, Reason.CHILD_INVALID, "x-hybrid-0-a1", "volumeMounts", '"lost"')
    assert scene.pods(home) == []
    patch(scene, home, "rlj", "x", {"spec": {"suspend": True}})
    cluster.wait("suspended", lambda: scene.conditions(home, "x")["Suspended"][0] == "True")
    lost["spec"]["volumes"] = [{"name": "lost", "emptyDir": {}}]
    job["spec"] |= {"hybrid": {"podPatch": lost}, "suspend": True}
    cluster.apply(job, namespace=home)
    patch(scene, home, "rlj", "x", {"spec": {"suspend": False}})
    made(scene, home, *PODS)
    assert scene.quiet(2)
