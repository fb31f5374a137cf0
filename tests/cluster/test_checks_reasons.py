"""Why a job does not run stands on the job, and what people edit is put back, on a real API server; pods are played."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import control_plane, namespace
from tests.cluster.operator_scene import USER, OperatorScene, scene
from tests.cluster.playing import bind, crash, leave, node, pod_names, wait_in

from twinpod.api import names
from twinpod.api.names import Reason

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
__all__ = ["control_plane", "scene"]
HASTE = {"backoffSeconds": 1, "maxBackoffSeconds": 1}
DEVICES = {"accelerators": 2, "deviceClass": "fake.twinpod.dev", "sharedMemory": "64Mi"}


@pytest.fixture(scope="module")
def leading(scene: OperatorScene) -> Iterator[None]:
    replica = scene.lead()
    yield
    replica.stop()
    assert "Traceback" not in replica.text


@pytest.fixture
def home(scene: OperatorScene, control_plane: Cluster) -> Iterator[str]:
    with namespace(control_plane) as name, node(scene, name):
        yield name


@pytest.fixture
def ending(scene: OperatorScene, control_plane: Cluster) -> Iterator[str]:
    """A namespace that the test itself deletes."""
    with namespace(control_plane) as name, node(scene, name):
        yield name
        control_plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})


def made(scene: OperatorScene, home: str, attempt: int = 1, pods: int = 2) -> None:
    scene.cluster.wait(f"attempt {attempt}", lambda: len(pod_names(scene, home, attempt)) == pods)


def says(scene: OperatorScene, home: str, reason: str, *parts: str, job: str = "x", kind: str = "Ready") -> None:
    """The job's condition comes to have that reason and to say all of that."""
    seen: list[tuple[str, str, str]] = []

    def told() -> bool:
        seen.append(scene.conditions(home, job).get(kind, ("", "", "")))
        return seen[-1][1] == reason and all(part in seen[-1][2] for part in parts)

    try:
        scene.cluster.wait(f"{reason} on the job", told, timeout_s=20)
    except Exception as error:
        raise AssertionError(f"{reason} {parts} is not what it says: {seen[-1]}") from error


def quota(scene: OperatorScene, home: str, hard: dict[str, str]) -> None:
    manifest = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": hard}}
    scene.cluster.apply(manifest, namespace=home)
    scene.cluster.wait(
        "quota is known", lambda: "used" in scene.cluster.get("resourcequota", "q", namespace=home).get("status", {})
    )


def edit(scene: OperatorScene, home: str, kind: str, name: str, patch: dict[str, object]) -> None:
    scene.cluster.kubectl("patch", kind, name, "-n", home, "--type=merge", "-p", json.dumps(patch))


def test_a_refused_claim_quota_stands_on_the_job(scene: OperatorScene, leading: None, home: str) -> None:
    quota(scene, home, {"count/resourceclaims.resource.k8s.io": "0"})
    scene.job("x", home, hybrid=DEVICES)
    says(scene, home, Reason.QUOTA_REFUSED, "exceeded quota: q", "raise the namespace's ResourceQuota")


def test_a_pod_quota_names_itself_and_what_mends_it_and_is_not_hammered(
    scene: OperatorScene, leading: None, home: str
) -> None:
    quota(scene, home, {"pods": "1"})
    mark = scene.cluster.audit_mark()
    scene.job("x", home)
    says(scene, home, Reason.QUOTA_REFUSED, "exceeded quota: q", "raise the namespace's ResourceQuota")
    for value in range(10):  # events of children wake the job meanwhile
        edit(scene, home, "configmap", "x-job", {"data": {"job.json": str(value)}})
    refused = [one for one in scene.cluster.audit(mark) if one.user == USER and one.namespace == home]
    assert len([one for one in refused if one.resource == "pods" and one.code == 403]) <= 5


def test_what_the_scheduler_says_stands_on_the_job(scene: OperatorScene, leading: None, home: str) -> None:
    scene.job("x", home)
    says(scene, home, Reason.UNSCHEDULABLE, "nodes are available", "add nodes with room")


def test_a_device_class_that_is_missing_is_named(scene: OperatorScene, leading: None, home: str) -> None:
    scene.job("x", home, hybrid=DEVICES | {"deviceClass": "gpu.nowhere.dev"})
    says(scene, home, Reason.DEVICE_CLASS_MISSING, '"gpu.nowhere.dev"', "hybrid.deviceClass")


def test_an_image_that_cannot_be_pulled_names_image_and_setting(scene: OperatorScene, leading: None, home: str) -> None:
    scene.job("x", home)
    made(scene, home)
    for name in pod_names(scene, home):
        bind(scene, home, name)
    wait_in(scene, home, "x-hybrid-0-a1", "trainer", "ImagePullBackOff", "manifest unknown")
    says(scene, home, Reason.IMAGE_PULL, "registry/trainer", "manifest unknown", "hybrid.trainer.image")


def test_an_engine_out_of_memory_is_told_with_the_limit_to_raise(
    scene: OperatorScene, leading: None, home: str
) -> None:
    scene.job("x", home, failurePolicy=HASTE | {"maxRestarts": 0})
    made(scene, home)
    for name in pod_names(scene, home):
        bind(scene, home, name)
    crash(scene, home, "x-hybrid-0-a1", "inference", exitCode=137, reason="OOMKilled")
    says(
        scene,
        home,
        Reason.OUT_OF_MEMORY,
        *("container inference", "raise resources.limits.memory of inference"),
        kind="Failed",
    )


def test_an_object_of_somebody_else_is_never_taken_over(scene: OperatorScene, leading: None, home: str) -> None:
    cluster = scene.cluster
    cluster.kubectl("create", "serviceaccount", "x", "-n", home)
    cluster.kubectl("create", "configmap", "x-job", "-n", home, "--from-literal=theirs=1")
    scene.job("x", home)
    says(scene, home, Reason.NAME_TAKEN, "exists and is not of this job", "another name", kind="Degraded")
    for kind, name in (("serviceaccount", "x"), ("configmap", "x-job")):
        metadata = cluster.get(kind, name, namespace=home)["metadata"]
        assert "ownerReferences" not in metadata, f"{kind} belongs to nobody"
        assert not metadata.get("labels"), f"{kind} is as it was"
    assert cluster.get("configmap", "x-job", namespace=home)["data"] == {"theirs": "1"}
    cluster.kubectl("delete", "serviceaccount,configmap", "x", "x-job", "-n", home, "--ignore-not-found")

    def ours() -> bool:
        found = cluster.kubectl("get", "serviceaccount", "x", "-n", home, "-o", "json", check=False)
        return found.returncode == 0 and "ownerReferences" in json.loads(found.stdout)["metadata"]

    cluster.wait("made once the name is free", ours)
    cluster.wait("no complaint", lambda: scene.conditions(home, "x")["Degraded"][0] == "False")


def test_labels_of_pods_and_children_are_put_back(scene: OperatorScene, leading: None, home: str) -> None:
    cluster = scene.cluster
    scene.job("x", home)
    made(scene, home)
    cluster.wait("nothing is missing", lambda: scene.quiet(1))
    pods = {pod["metadata"]["name"]: pod["metadata"] for pod in scene.pods(home)}
    edits: tuple[dict[str, str | None], ...] = (
        {names.LABEL_MANAGED_BY: None},
        {names.LABEL_ATTEMPT: "7"},
        {names.LABEL_JOB_UID: "another"},
        {names.LABEL_ROLE: None, names.LABEL_INDEX: "4"},
    )
    for labels in edits:
        for kind, name in (("pod", "x-master-a1"), ("pod", "x-hybrid-0-a1"), ("service", "x")):
            edit(scene, home, kind, name, {"metadata": {"labels": dict(labels)}})

        def back() -> bool:
            now = {pod["metadata"]["name"]: pod["metadata"] for pod in scene.pods(home)}
            service = cluster.get("service", "x", namespace=home)["metadata"]["labels"]
            same = all(now[name]["labels"].items() >= pods[name]["labels"].items() for name in pods if name in now)
            return set(now) == set(pods) and same and service.get(names.LABEL_MANAGED_BY) == names.FIELD_MANAGER

        cluster.wait(f"labels {sorted(labels)} are back", back, timeout_s=20)
    now = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in scene.pods(home)}
    assert now == {name: metadata["uid"] for name, metadata in pods.items()}, "the very same pods"
    assert scene.quiet(3)


def test_a_pod_deleted_by_hand_is_replaced_with_its_set_under_new_names(
    scene: OperatorScene, leading: None, home: str
) -> None:
    cluster = scene.cluster
    scene.job("x", home)
    made(scene, home)
    cluster.wait("told", lambda: scene.conditions(home, "x").get("Ready", ("",))[0] == "False")
    cluster.kubectl("delete", "pod", "x-hybrid-0-a1", "-n", home)
    made(scene, home, 2)
    status = cluster.get("rlj", "x", namespace=home)["status"]
    assert (status["infrastructureFaults"], status["applicationFaults"]) == (1, 0)
    assert status["lastFault"].startswith(f"{Reason.POD_DELETED}: ")
    cluster.wait("the old set is gone", lambda: pod_names(scene, home) == pod_names(scene, home, 2))


def test_in_a_namespace_that_ends_nothing_is_tried_again_and_again(
    scene: OperatorScene, leading: None, ending: str
) -> None:
    home, cluster = ending, scene.cluster
    scene.job("x", home)
    made(scene, home)
    for name in pod_names(scene, home):
        bind(scene, home, name)
    mark = cluster.audit_mark()
    cluster.kubectl("delete", "namespace", home, "--wait=false")
    cluster.wait("pods go first", lambda: not pod_names(scene, home))
    leave(scene, home, "x-master-a1", "x-hybrid-0-a1")
    gone = ("get", "namespace", home)
    cluster.wait("the namespace is gone", lambda: cluster.kubectl(*gone, check=False).returncode != 0)
    assert scene.quiet(2)
    failed = [one for one in cluster.audit(mark) if one.user == USER and one.namespace == home and one.code >= 400]
    assert len(failed) <= 100, [f"{one.verb} {one.resource} {one.name} {one.code}" for one in failed]
