"""Real pods on two nodes while parts of the cluster fail: devices that two jobs want, drivers and nodes lost."""

from __future__ import annotations

import os

import pytest
from tests.cluster import node as nodes
from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import cluster
from tests.cluster.platform import SYSTEM
from tests.cluster.platform_scene import Manifest, PlatformScene, on_node, platform, scene
from tests.cluster.services import DEVICE_CLASS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
__all__ = ["cluster", "platform", "scene"]

ROUNDS = int(os.environ.get("TWINPOD_SOAK_ROUNDS", "1"))  # ten in a soak


def claims(scene: PlatformScene) -> list[Manifest]:
    """Allocated ones."""
    found = scene.cluster.get("resourceclaims", namespace=scene.home)["items"]
    return [claim for claim in found if claim.get("status", {}).get("allocation")]


def test_devices_are_free_again_after_a_driver_that_died_during_a_deletion(scene: PlatformScene) -> None:
    node = scene.cluster.nodes[0]
    wants = {"accelerators": 4, "deviceClass": DEVICE_CLASS} | on_node(node)
    scene.job("old", iterations=2000, hybrid=wants)
    scene.wait("old", "its pods run", lambda: scene.status("old").get("pods") == "2/2", 180)
    assert len(claims(scene)) == 1
    scene.cluster.kill_driver(node)
    try:
        scene.cluster.kubectl("delete", "rlj", "old", "-n", scene.home, "--wait=false")

        def containers_ended() -> bool:
            found = scene.cluster.get("pods", namespace=scene.home)["items"]
            hybrid = [one for one in found if "hybrid" in one["metadata"]["name"]]
            states = [state for one in hybrid for state in one["status"].get("containerStatuses", [])]
            return bool(hybrid) and all("terminated" in state["state"] for state in states)

        scene.cluster.wait("its containers have ended", containers_ended, 90)
        assert scene.stays(lambda: len(claims(scene)) == 1, 3), "nobody unprepares the claim"
    finally:
        scene.cluster.start_driver(node)
    scene.cluster.wait("the claim is released", lambda: not claims(scene), 120)
    scene.cluster.kubectl("wait", "--for=delete", "rlj/old", "-n", scene.home, "--timeout=150s")
    scene.job("new", hybrid=wants)
    scene.wait("new", "all four devices again", lambda: len(claims(scene)) == 1, 90)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_two_jobs_that_each_need_most_of_the_devices_both_finish(scene: PlatformScene, number: int) -> None:
    """Two pods of three devices each: of eight on two nodes, one job's pods leave none that fits."""
    wants = {"replicas": 2, "accelerators": 3, "deviceClass": DEVICE_CLASS}
    for name in ("one", "two"):
        scene.job(name, hybrid=wants)
    for name in ("one", "two"):
        scene.wait_end(name, 480)
        assert scene.status(name)["restarts"] == 0
    scene.cluster.wait("all devices are free", lambda: not claims(scene))


def test_a_job_goes_on_elsewhere_when_its_node_falls_silent(scene: PlatformScene) -> None:
    cluster = scene.cluster
    etcd = cluster.get("pod", "twinpod-etcd-0", namespace=SYSTEM)["spec"]["nodeName"]
    lost = next(name for name in cluster.nodes if name != etcd)
    patch = {"podPatch": {"spec": {"affinity": rather(lost)}}}
    scene.job("x", iterations=5000, master=patch, hybrid={"lifeCycle": "Keep"} | patch, storage={"snapshotEvery": 5})
    scene.wait_iteration("x", 5)
    assert {pod["spec"]["nodeName"] for pod in scene.pods("x")} == {lost}
    old = scene.pods("x", "master")[0]["metadata"]
    cluster.kill_kubelet(lost)
    try:
        scene.wait("x", "another attempt", lambda: scene.status("x").get("attempt", 1) > 1, 240)
        scene.wait("x", "its pods", lambda: len(scene.pods("x")) == 2, 240)
        scene.wait("x", "its pods run", lambda: scene.status("x").get("pods") == "2/2", 240)
        before = scene.inspect("x")
        scene.wait(
            "x",
            "it goes on",
            lambda: scene.inspect("x")["iterations_committed"] > before["iterations_committed"] + 5,
            240,
        )
        report = scene.inspect("x")
        numbers = [one["iteration"] for one in report["iterations"]]
        epochs = [one["epoch"] for one in report["iterations"]]
        assert numbers == list(range(1, len(numbers) + 1))
        assert epochs == sorted(epochs), "what the old master did after the new one began is not there"
        assert report["epoch"] == epochs[-1] > 1
        said = log_of(cluster, lost, scene.home, old["name"], old["uid"])
        assert "epoch 1 is over" in said, "the old master saw the new epoch, and left"
        assert scene.status("x")["attempt"] == 2, "the books were free for the first master that came after it"
        status = scene.status("x")
        assert (status["applicationFaults"], status["infrastructureFaults"]) == (0, 1)
    finally:
        cluster.start_kubelet(lost)
        cluster.wait("the node is back", lambda: cluster.node_ready(lost), 60)
    scene.delete("x")


def rather(node: str) -> Manifest:
    """Affinity: on this node as long as it can."""
    expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    term = {"weight": 100, "preference": {"matchExpressions": [expression]}}
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}}


def log_of(cluster: Cluster, node: str, home: str, pod: str, uid: str) -> str:
    """What the containers of a pod on a silent node have said."""
    folder = nodes.folder(cluster.layout, node) / "pod-logs" / f"{home}_{pod}_{uid}"
    return "".join(path.read_text(errors="replace") for path in sorted(folder.glob("*/*.log")))
