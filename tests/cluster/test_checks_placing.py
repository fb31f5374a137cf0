"""Queues, turns for devices and pools on a real API server; pods, nodes and the queue are played."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import control_plane, namespace
from tests.cluster.operator_scene import ROOT, USER, OperatorScene, scene
from tests.cluster.playing import bind, crash, leave, node, opened_queue, pod_names, turn_away

from twinpod.api import names
from twinpod.api.names import Reason
from twinpod_operator.reading import unix

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
    with namespace(control_plane, restricted=True) as name, node(scene, name):
        yield name


def made(scene: OperatorScene, home: str, attempt: int = 1, pods: int = 2) -> None:
    scene.cluster.wait(f"attempt {attempt}", lambda: len(pod_names(scene, home, attempt)) == pods)


def gates(scene: OperatorScene, home: str, job: str = "x") -> set[str]:
    return {
        gate["name"]
        for pod in scene.pods(home)
        if pod["metadata"]["name"].startswith(f"{job}-") and "deletionTimestamp" not in pod["metadata"]
        for gate in pod["spec"].get("schedulingGates", [])
    }


def status(scene: OperatorScene, home: str, name: str = "x", kind: str = "rlj") -> dict[str, Any]:
    return dict(scene.cluster.get(kind, name, namespace=home).get("status", {}))


def pool(scene: OperatorScene, home: str, **spec: Any) -> None:
    sample = list(yaml.safe_load_all((ROOT / "manifests/samples/pool.yaml").read_text()))[1]
    sample["metadata"] = {"name": "helpers"}
    sample["spec"] |= {"job": "x"} | spec
    scene.cluster.apply(sample, namespace=home)


def ready(scene: OperatorScene, home: str) -> tuple[str, str, str]:
    return scene.conditions(home, "helpers", "rolloutpool").get("Ready", ("", "", ""))


def test_a_queue_admits_preempts_and_gets_its_pods_back_without_costing_a_restart(
    scene: OperatorScene, leading: None, home: str
) -> None:
    cluster = scene.cluster
    with opened_queue(scene, home) as queue:
        manifest = yaml.safe_load((ROOT / "manifests/samples/smoke.yaml").read_text())
        manifest["metadata"] = {"name": "x", "labels": {names.QUEUE_LABEL: "team"}}
        manifest["spec"] |= {"failurePolicy": HASTE | {"maxRestarts": 0, "maxInfrastructureRestarts": 0}}
        cluster.apply(manifest, namespace=home)
        made(scene, home)
        assert gates(scene, home) == {names.QUEUE_GATE}, "no gate of ours beside the queue's"
        cluster.wait("queued", lambda: scene.conditions(home, "x").get("Ready", ("", ""))[1] == Reason.QUEUED)
        groups = {pod["metadata"]["labels"][names.QUEUE_GROUP_LABEL] for pod in scene.pods(home)}
        counts = {pod["metadata"]["annotations"][names.QUEUE_GROUP_COUNT] for pod in scene.pods(home)}
        assert (len(groups), counts) == (1, {"2"}), "the master counts"
        for attempt in (1, 2):
            old = pod_names(scene, home, attempt)
            assert queue.admit() == old
            for name in old:
                bind(scene, home, name)
                scene.play(home, name)
            cluster.wait("admitted, it runs", lambda: scene.conditions(home, "x")["WorkersReady"][:1] == ("True",))
            queue.preempt(*old)
            for name in old:  # the kubelet has stopped it; the queue's finalizer keeps it
                crash(scene, home, name, "c", exitCode=143)
            made(scene, home, attempt + 1)
            held = {pod["metadata"]["name"] for pod in scene.pods(home)}
            assert set(old) < held, "kept by the queue until it is replaced"
            queue.release(*old)
            leave(scene, home, *old)
        found = status(scene, home)
        assert (found["preemptions"], found["restarts"], found["infrastructureFaults"]) == (2, 0, 0)
        assert scene.conditions(home, "x")["Failed"][0] == "False"
        assert {pod["metadata"]["labels"][names.QUEUE_GROUP_LABEL] for pod in scene.pods(home)} == groups
        last = pod_names(scene, home, 3)
        queue.admit()
        for name in last:
            bind(scene, home, name)
        crash(scene, home, "x-hybrid-0-a3", "trainer")
        cluster.wait("failed for good", lambda: scene.conditions(home, "x")["Failed"][0] == "True")

        def ended() -> bool:
            pods = {pod["metadata"]["name"]: pod["metadata"] for pod in scene.pods(home)}
            return pods["x-hybrid-0-a3"].get("annotations", {}).get(names.QUEUE_RETRIABLE) == "false"

        cluster.wait("the group is told that nobody replaces it", ended)
        queue.release(*last)
        leave(scene, home, *last)


def test_two_jobs_with_devices_are_let_through_one_after_the_other(
    scene: OperatorScene, leading: None, home: str
) -> None:
    cluster = scene.cluster
    scene.job("a", home, hybrid=DEVICES)
    scene.job("b", home, hybrid=DEVICES)
    cluster.wait("all pods", lambda: len(pod_names(scene, home)) == 4)
    cluster.wait("one has its turn", lambda: len([job for job in "ab" if not gates(scene, home, job)]) == 1)
    assert scene.quiet(2)
    first, second = ("a", "b") if not gates(scene, home, "a") else ("b", "a")
    assert gates(scene, home, second) == {names.GANG_GATE}
    cluster.wait("it says so", lambda: scene.conditions(home, second)["Ready"][1] == Reason.GATED)
    bind(scene, home, f"{first}-master-a1")
    assert scene.quiet(1)
    assert gates(scene, home, second) == {names.GANG_GATE}, "half of the first is not enough"
    bind(scene, home, f"{first}-hybrid-0-a1")
    cluster.wait("the second's turn", lambda: not gates(scene, home, second))


def test_a_set_without_room_is_taken_back_at_its_deadline_and_the_other_has_its_turn(
    scene: OperatorScene, leading: None, home: str
) -> None:
    cluster = scene.cluster
    for job in ("a", "b"):
        scene.job(job, home, hybrid=DEVICES, failurePolicy={"schedulingDeadlineSeconds": 10} | HASTE)
    cluster.wait("all pods", lambda: len(pod_names(scene, home)) == 4)
    cluster.wait("one has its turn", lambda: len([job for job in "ab" if not gates(scene, home, job)]) == 1)
    first, second = ("a", "b") if not gates(scene, home, "a") else ("b", "a")
    cluster.wait("the other's turn", lambda: not gates(scene, home, second))
    for name in pod_names(scene, home):
        if name.startswith(f"{second}-"):
            bind(scene, home, name)
    cluster.wait("the first stands in line again", lambda: status(scene, home, first)["schedulingRetries"] >= 1)
    cluster.wait("with new names", lambda: len(pod_names(scene, home, 2)) == 2)
    assert status(scene, home, first)["restarts"] == 0
    claims = cluster.get("resourceclaims", "-l", f"{names.LABEL_MANAGED_BY}={names.FIELD_MANAGER}", namespace=home)
    assert claims["items"], "claims of devices are seen by their label"


def test_a_pool_waits_for_its_job_is_scaled_and_is_never_resized_by_the_operator(
    scene: OperatorScene, leading: None, home: str
) -> None:
    cluster = scene.cluster
    mark = cluster.audit_mark()
    pool(scene, home, replicas=1)
    cluster.wait("it says what it waits for", lambda: ready(scene, home)[1] == Reason.JOB_MISSING)
    scene.job("x", home)
    cluster.wait("one helper", lambda: "helpers-rollout-0-a0" in pod_names(scene, home))
    for replicas in (0, 2, 1):
        cluster.kubectl("scale", "rolloutpool/helpers", "-n", home, f"--replicas={replicas}")
        wanted = [f"helpers-rollout-{index}" for index in range(replicas)]

        def fits(wanted: list[str] = wanted) -> bool:
            there = [name.rpartition("-a")[0] for name in pod_names(scene, home) if "-rollout-" in name]
            return there == wanted and status(scene, home, "helpers", "rolloutpool").get("replicas") == len(wanted)

        cluster.wait(f"{replicas} helpers", fits)
        for name in pod_names(scene, home):
            if "-rollout-" in name:
                scene.play(home, name)
        if replicas:
            cluster.wait("ready", lambda: ready(scene, home)[0] == "True")
    assert cluster.get("rolloutpool", "helpers", namespace=home)["spec"]["replicas"] == 1
    assert scene.quiet(3)
    spec_writes = [
        one
        for one in cluster.audit(mark)
        if one.user == USER and one.writes and one.resource in ("rolloutpools", "rolloutpools/scale")
    ]
    assert spec_writes == [], "only the status is written"
    cluster.kubectl("delete", "rolloutpool", "helpers", "-n", home, "--wait=true", "--timeout=30s")
    cluster.wait("its pods are gone", lambda: not [name for name in pod_names(scene, home) if "-rollout-" in name])
    assert len(pod_names(scene, home)) == 2, "the job's pods stay"


def test_pods_of_a_pool_are_put_back_and_what_fails_at_once_is_tried_later_and_not_for_ever(
    scene: OperatorScene, leading: None, home: str
) -> None:
    cluster = scene.cluster
    scene.job("x", home, failurePolicy={"maxRestarts": 1})
    pool(scene, home, replicas=2)

    def helpers() -> list[str]:
        return [name for name in pod_names(scene, home) if "-rollout-" in name]

    cluster.wait("two helpers", lambda: len(helpers()) == 2)
    cluster.kubectl("delete", "pod", "helpers-rollout-1-a0", "-n", home)
    cluster.wait("two helpers again", lambda: len(helpers()) == 2)
    patch = json.dumps({"metadata": {"labels": {names.LABEL_MANAGED_BY: None, names.LABEL_POOL_UID: "other"}}})
    cluster.kubectl("patch", "pod", "helpers-rollout-0-a0", "-n", home, "--type=merge", "-p", patch)

    def labelled() -> bool:
        pod = cluster.get("pod", "helpers-rollout-0-a0", namespace=home)
        return pod["metadata"]["labels"].get(names.LABEL_MANAGED_BY) == names.FIELD_MANAGER

    cluster.wait("its labels are back", labelled)
    ended = time.time()
    turn_away(scene, home, "helpers-rollout-0-a0")
    cluster.wait("there is another", lambda: "helpers-rollout-0-a1" in pod_names(scene, home), timeout_s=20)
    made = cluster.get("pod", "helpers-rollout-0-a1", namespace=home)["metadata"]["creationTimestamp"]
    assert unix(made) - ended >= 3, "it waits five seconds first; the stamp has whole ones"
    cluster.wait("the failed one is removed", lambda: "helpers-rollout-0-a0" not in pod_names(scene, home))
    turn_away(scene, home, "helpers-rollout-0-a1")
    cluster.wait("it is given up", lambda: ready(scene, home)[1] == Reason.BUDGET_SPENT)
    assert "helpers-rollout-0-a1: " in ready(scene, home)[2]
    assert scene.quiet(4)
    cluster.kubectl("scale", "rolloutpool/helpers", "-n", home, "--replicas=0")
    cluster.wait("none", lambda: not helpers())
    cluster.kubectl("scale", "rolloutpool/helpers", "-n", home, "--replicas=2")
    cluster.wait("it begins anew", lambda: "helpers-rollout-0-a0" in helpers())
