"""Real pods of real images on two nodes: a pool that is scaled, shared devices, and what a job says of its pods."""

from __future__ import annotations

from typing import Any

import pytest
from tests.cluster.fixtures import cluster
from tests.cluster.platform_scene import PlatformScene, on_node, platform, scene
from tests.cluster.services import DEVICE_CLASS

from twinpod.api import names
from twinpod.api.names import Reason

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
__all__ = ["cluster", "platform", "scene"]

KEEP = {"lifeCycle": "Keep"}
QUICK = 30  # iterations of a fifth of a second: not every helper has a segment in each


def shares(report: dict[str, Any], first: int, last: int, pool: str) -> tuple[int, int]:
    """Segments of the iterations first .. last that the pool's pods made under the iteration's version, and all."""
    rows = [row for row in report["pods_by_iteration"] if first <= row["iteration"] <= last]
    newest = {
        row["iteration"]: max(one["version"] for one in rows if one["iteration"] == row["iteration"]) for row in rows
    }
    helped = [r["segments"] for r in rows if r["pod"].startswith(f"{pool}-") and r["version"] == newest[r["iteration"]]]
    return sum(helped), sum(row["segments"] for row in rows)


def helpers(report: dict[str, Any], iteration: int, pool: str) -> set[str]:
    """Pods of the pool that made segments in an iteration."""
    rows = report["pods_by_iteration"]
    return {one["pod"] for one in rows if one["iteration"] == iteration and one["pod"].startswith(f"{pool}-")}


def left(scene: PlatformScene, pool: str) -> int:
    """Pods of the pool, those on their way out among them."""
    return len(scene.cluster.get("pods", "-l", f"{names.LABEL_POOL}={pool}", namespace=scene.home)["items"])


def test_a_pool_scaled_from_0_to_2_to_1_on_the_other_node_takes_its_share(scene: PlatformScene) -> None:
    first, second = scene.cluster.nodes
    scene.job("x", iterations=100_000, hybrid=KEEP | on_node(first), storage={"snapshotEvery": 50})
    scene.pool("helpers", "x", 0, **on_node(second))
    scene.wait_iteration("x", 1)
    scene.scale("helpers", 2)
    scene.wait("x", "two ready helpers", lambda: scene.status("helpers", "rp").get("readyReplicas") == 2, 240)
    assert {pod["spec"]["nodeName"] for pod in scene.pods("x", "rollout")} == {second}

    def both_help() -> bool:
        report = scene.inspect("x")
        done = report["iterations_committed"]
        each = (helpers(report, iteration, "helpers") for iteration in range(max(1, done - QUICK), done + 1))
        return len(set().union(*each)) == 2

    scene.wait("x", "both helpers generate", both_help, 240, every_s=5.0)
    begun = scene.iteration("x") + 1
    scene.wait_iteration("x", begun + 10)
    scene.scale("helpers", 1)
    scene.wait("x", "one helper is gone", lambda: left(scene, "helpers") == 1, 120)
    ended = scene.inspect("x")["iterations_committed"] + 1
    scene.wait_iteration("x", ended + 20)
    report = scene.inspect("x")
    done = report["iterations_committed"]
    ours, all_of_them = shares(report, begun, done - 1, "helpers")
    told = f"iterations {begun} to {done - 1}: {ours} of {all_of_them} segments by helpers"
    print(told)
    assert ours >= 0.2 * all_of_them, told
    late = [helpers(report, iteration, "helpers") for iteration in range(ended + 1, done)]
    assert set().union(*late) == {"helpers-rollout-0"}, "the other one helps on; it need not in every quick iteration"
    assert [one["iteration"] for one in report["iterations"]] == list(range(1, done + 1)), "no iteration failed"
    assert (report["resumes"], scene.status("x")["restarts"], scene.status("x")["attempt"]) == (0, 0, 1)
    scene.delete("x")


def devices(scene: PlatformScene, pod: str, container: str) -> list[str]:
    script = "env | grep ^TWINPOD_FAKE_DEVICE_ | sort; cat /dev/twinpod-fake-*"
    said = scene.cluster.kubectl("exec", pod, "-n", scene.home, "-c", container, "--", "sh", "-c", script)
    return said.stdout.split()


def held(scene: PlatformScene) -> int:
    """Devices that claims of the namespace hold."""
    claims = scene.cluster.get("resourceclaims", namespace=scene.home)["items"]
    found = [claim.get("status", {}).get("allocation", {}).get("devices", {}).get("results", []) for claim in claims]
    return sum(len(results) for results in found)


def test_both_halves_see_the_devices_of_one_claim_and_success_is_no_restart(scene: PlatformScene) -> None:
    scene.job("x", hybrid={"accelerators": 2, "deviceClass": DEVICE_CLASS})

    def up() -> bool:
        pods = scene.pods("x", "hybrid")
        return bool(pods) and all(
            one["ready"] for one in pods[0]["status"].get("containerStatuses", [{"ready": False}])
        )

    scene.wait("x", "the hybrid pod is up", up, 180)
    (pod,) = (one["metadata"]["name"] for one in scene.pods("x", "hybrid"))
    seen = {half: devices(scene, pod, half) for half in ("trainer", "inference")}
    assert len(seen["trainer"]) == 4, seen
    assert seen["trainer"] == seen["inference"]
    assert held(scene) == 2
    scene.wait_end("x")
    status = scene.status("x")
    assert (status["restarts"], status["attempt"], status["accelerators"], status["sharing"]) == (0, 1, 2, "Claim")
    (hybrid,) = scene.pods("x", "hybrid")
    scene.cluster.wait("the pod has ended", lambda: scene.pods("x", "hybrid")[0]["status"]["phase"] == "Succeeded")
    hybrid = scene.pods("x", "hybrid")[0]
    assert [one["restartCount"] for one in hybrid["status"]["initContainerStatuses"]] == [0]
    scene.cluster.wait("the devices are free", lambda: held(scene) == 0)
    assert scene.status("x")["restarts"] == 0


def test_a_job_says_why_its_pods_do_not_run(scene: PlatformScene) -> None:
    """Each stands on the job as soon as a pod, or the API server, says it."""
    once = {"maxRestarts": 0}
    nowhere = f"{scene.cluster.registry}/tests/nowhere:1"
    unconfined = {"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined"}
    scene.job("memory", failurePolicy=once, hybrid={"inference": {"resources": {"limits": {"memory": "400Mi"}}}})
    scene.job("image", hybrid={"trainer": {"image": nowhere}})
    scene.job("room", hybrid={"trainer": {"resources": {"requests": {"memory": "900Gi"}}}})
    scene.job("security", hybrid={"podPatch": {"metadata": {"annotations": unconfined}}})
    assert "AppArmor" in scene.wait_reason("security", Reason.POD_SECURITY)
    assert "Insufficient memory" in scene.wait_reason("room", Reason.UNSCHEDULABLE, "Insufficient memory")
    assert nowhere in scene.wait_reason("image", Reason.IMAGE_PULL)
    scene.cluster.kubectl("delete", "rlj", "security", "room", "image", "-n", scene.home, "--wait=false")
    said = scene.wait_reason("memory", Reason.OUT_OF_MEMORY, within_s=240)
    print(said)
    assert "inference" in said
    over = ("True", Reason.OUT_OF_MEMORY)
    scene.look_until("memory", "is given up", lambda: scene.condition("memory", "Failed")[:2] == over, 60)
