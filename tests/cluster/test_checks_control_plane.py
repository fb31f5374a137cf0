"""Ends and beginnings of jobs on a real API server, pods played: crashes, names used again, etcd away, time to live."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import control_plane, namespace
from tests.cluster.operator_scene import USER, OperatorScene, scene
from tests.cluster.playing import bind, crash, leave, node, pod_names

from twinpod.api import names
from twinpod.coordination.etcd import EtcdStore
from twinpod.coordination.keys import Keys
from twinpod.rpc.certificates import issue

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
__all__ = ["control_plane", "scene"]
HASTE = {"backoffSeconds": 1, "maxBackoffSeconds": 1}
DEVICES = {"accelerators": 2, "deviceClass": "fake.twinpod.dev", "sharedMemory": "64Mi"}


@pytest.fixture(scope="module")
def leading(scene: OperatorScene) -> Iterator[None]:
    replica = scene.lead(TWINPOD_DELETION_S="6", TWINPOD_SWEEP_S="2")
    yield
    replica.stop()
    assert "Traceback" not in replica.text


@pytest.fixture
def home(scene: OperatorScene, control_plane: Cluster) -> Iterator[str]:
    with namespace(control_plane, restricted=True) as name, node(scene, name):
        yield name


def made(scene: OperatorScene, home: str, attempt: int, pods: int = 2) -> None:
    scene.cluster.wait(f"attempt {attempt}", lambda: len(pod_names(scene, home, attempt)) == pods)


def uid_of(scene: OperatorScene, home: str, job: str = "x") -> str:
    return str(scene.cluster.get("rlj", job, namespace=home)["metadata"]["uid"])


def put_keys(scene: OperatorScene, folder: Path, prefix: str) -> None:
    """What a master of the job would have left."""
    asyncio.run(_put(scene, folder, f"{prefix}note"))


def keys(scene: OperatorScene, folder: Path, prefix: str) -> tuple[str, ...]:
    return asyncio.run(_keys(scene, folder, prefix))


async def _put(scene: OperatorScene, folder: Path, key: str) -> None:
    store = _store(scene, folder)
    await store.put(key, "old")
    await store.close()


async def _keys(scene: OperatorScene, folder: Path, prefix: str) -> tuple[str, ...]:
    store = _store(scene, folder)
    found = await store.keys(prefix)
    await store.close()
    return found


def _store(scene: OperatorScene, folder: Path) -> EtcdStore:
    issue(scene.authority, ["root"]).write(folder / "root")
    return EtcdStore([scene.etcd.endpoint], folder / "root")


def test_a_half_that_crashes_again_and_again_fails_the_job_and_holds_no_devices(
    scene: OperatorScene, leading: None, home: str
) -> None:
    cluster = scene.cluster
    scene.job("x", home, hybrid=DEVICES, failurePolicy=HASTE | {"maxRestarts": 2})
    for attempt in (1, 2, 3):
        made(scene, home, attempt)
        both = pod_names(scene, home, attempt)
        cluster.wait("let through", lambda: not _gated(scene, home))
        for name in both:
            bind(scene, home, name)
        for name in both:
            scene.play(home, name)
        crash(scene, home, f"x-hybrid-0-a{attempt}", "trainer", message="ValueError: the loss is not a number")
        master = f"x-master-a{attempt}"
        cluster.wait("the rest of the set is stopped", lambda master=master: master not in pod_names(scene, home))
        leave(scene, home, master)
    cluster.wait("it has failed", lambda: scene.conditions(home, "x")["Failed"][0] == "True")
    _, reason, message = scene.conditions(home, "x")["Failed"]
    assert reason == names.Reason.CRASHED
    assert "pod x-hybrid-0-a3: container trainer: exit 1: ValueError: the loss is not a number" in message
    assert "2" in message, "the budget is named"
    assert scene.conditions(home, "x")["Ready"] == ("False", reason, message)
    cluster.wait("no pod lives", lambda: not _alive(scene, home))
    cluster.wait("no claim of devices", lambda: not cluster.get("resourceclaims", namespace=home)["items"])
    assert scene.quiet(4)
    creates = [one.name for one in cluster.audit() if one.user == USER and one.namespace == home]
    assert not any(name.endswith("-a4") for name in creates)
    assert cluster.get("rlj", "x", namespace=home)["status"]["restarts"] == 2


def _gated(scene: OperatorScene, home: str) -> list[str]:
    return [pod["metadata"]["name"] for pod in scene.pods(home) if pod["spec"].get("schedulingGates")]


def _alive(scene: OperatorScene, home: str) -> list[str]:
    return [
        pod["metadata"]["name"] for pod in scene.pods(home) if pod["status"]["phase"] not in ("Failed", "Succeeded")
    ]


def test_a_job_applied_again_under_its_name_starts_anew_and_finds_nothing_of_the_old_one(
    scene: OperatorScene, leading: None, home: str, tmp_path: Path
) -> None:
    cluster = scene.cluster
    scene.job("x", home)
    made(scene, home, 1)
    before, old = uid_of(scene, home), Keys(namespace=home, job_uid=uid_of(scene, home)).prefix
    secrets = {name: _data(scene, home, name) for name in ("x-ca", "x-tls", "x-etcd")}
    put_keys(scene, tmp_path, old)
    cluster.kubectl("delete", "rlj", "x", "-n", home, "--wait=true", "--timeout=60s")
    scene.job("x", home)  # at once, while the collector still takes away what was left
    made(scene, home, 1)
    cluster.wait("its secrets are new", lambda: all(_data(scene, home, name) != secrets[name] for name in secrets))
    after = uid_of(scene, home)
    assert after != before
    assert keys(scene, tmp_path, old) == (), "the old prefix is gone"
    assert cluster.get("rlj", "x", namespace=home)["status"]["attempt"] == 1
    volumes = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in scene.pods(home)
        for volume in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert {name[-8:] for name in volumes} == {after[:8]}, "the new pods mount new claims"
    kept = {one["metadata"]["name"] for one in cluster.get("pvc", namespace=home)["items"]}
    assert volumes < kept, "the old claims are kept"
    assert len(kept) == 4
    kinds = "pods,services,configmaps,secrets,serviceaccounts,networkpolicies,poddisruptionbudgets"

    def left() -> list[str]:
        found = cluster.get(kinds, "-l", f"{names.LABEL_JOB_UID}={before}", namespace=home)["items"]
        return [one["metadata"]["name"] for one in found]

    cluster.wait("nothing of the old one", lambda: not left())
    cluster.wait("all children are its own", lambda: _complete(scene, home, after))
    assert scene.quiet(4)


def _complete(scene: OperatorScene, home: str, uid: str) -> bool:
    kinds = "services,configmaps,secrets,serviceaccounts,networkpolicies,poddisruptionbudgets"
    found = scene.cluster.get(kinds, "-l", f"{names.LABEL_JOB_UID}={uid}", namespace=home)["items"]
    owners = {reference["uid"] for one in found for reference in one["metadata"]["ownerReferences"]}
    return owners == {uid} and {one["kind"] for one in found} == {
        *("Service", "ConfigMap", "Secret", "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget")
    }


def _data(scene: OperatorScene, home: str, name: str) -> dict[str, str] | None:
    done = scene.cluster.kubectl("get", "secret", name, "-n", home, "-o", "json", check=False)
    return None if done.returncode else dict(json.loads(done.stdout)["data"])


def test_with_etcd_down_a_deletion_ends_at_its_deadline_and_the_keys_are_swept_later(
    scene: OperatorScene, leading: None, home: str, tmp_path: Path
) -> None:
    cluster = scene.cluster
    scene.job("x", home)
    made(scene, home, 1)
    prefix = Keys(namespace=home, job_uid=uid_of(scene, home)).prefix
    put_keys(scene, tmp_path, prefix)
    scene.etcd.kill()
    try:
        cluster.kubectl("delete", "rlj", "x", "-n", home, "--wait=true", "--timeout=30s")
        events = cluster.get("events", namespace=home)["items"]
        assert any(one["reason"] == names.Reason.SWEEP_LATER and "swept later" in one["message"] for one in events)
    finally:
        asyncio.run(scene.etcd.start())
    cluster.wait("swept later", lambda: keys(scene, tmp_path, prefix) == ())


def test_a_job_whose_node_is_silent_is_deleted_at_the_deadline(scene: OperatorScene, leading: None, home: str) -> None:
    cluster = scene.cluster
    scene.job("x", home)
    made(scene, home, 1)
    for name in pod_names(scene, home):
        bind(scene, home, name)
    cluster.kubectl("delete", "rlj", "x", "-n", home, "--wait=true", "--timeout=30s")
    deleting = [pod["metadata"]["name"] for pod in scene.pods(home) if "deletionTimestamp" in pod["metadata"]]
    assert deleting == ["x-hybrid-0-a1", "x-master-a1"], "never by force"
    leave(scene, home, *deleting)


def test_a_suspended_job_stops_its_pods_and_goes_on_with_new_ones(
    scene: OperatorScene, leading: None, home: str
) -> None:
    cluster = scene.cluster
    scene.job("x", home)
    made(scene, home, 1)
    claims = {one["metadata"]["name"] for one in cluster.get("pvc", namespace=home)["items"]}
    _suspend(scene, home, True)
    cluster.wait("no pods", lambda: not scene.pods(home))
    cluster.wait("it says so", lambda: scene.conditions(home, "x")["Suspended"][0] == "True")
    assert scene.conditions(home, "x")["Ready"][1] == names.Reason.SUSPENDED
    assert scene.quiet(3)
    _suspend(scene, home, False)
    made(scene, home, 2)
    status = cluster.get("rlj", "x", namespace=home)["status"]
    assert (status["restarts"], status["infrastructureFaults"]) == (0, 0)
    assert {one["metadata"]["name"] for one in cluster.get("pvc", namespace=home)["items"]} == claims


def _suspend(scene: OperatorScene, home: str, value: bool) -> None:
    patch = json.dumps({"spec": {"suspend": value}})
    scene.cluster.kubectl("patch", "rlj", "x", "-n", home, "--type=merge", "-p", patch)


def test_a_finished_job_goes_when_its_time_is_over_and_its_claims_stay(
    scene: OperatorScene, leading: None, home: str
) -> None:
    cluster = scene.cluster
    scene.job("x", home, ttlSecondsAfterFinished=6)
    made(scene, home, 1)
    for name in pod_names(scene, home):
        scene.play(home, name)
    scene.play(home, "x-hybrid-0-a1", "Succeeded")
    scene.play(home, "x-master-a1", "Succeeded")
    cluster.wait("success", lambda: scene.conditions(home, "x").get("Succeeded", ("",))[0] == "True")
    gone = ("get", "rlj", "x", "-n", home)
    cluster.wait("it is gone", lambda: cluster.kubectl(*gone, check=False).returncode != 0)
    cluster.wait("its pods as well", lambda: not scene.pods(home))
    assert len(cluster.get("pvc", namespace=home)["items"]) == 2


def test_two_jobs_of_one_name_in_two_namespaces_share_nothing(
    scene: OperatorScene, leading: None, home: str, control_plane: Cluster
) -> None:
    cluster = scene.cluster
    with namespace(control_plane, restricted=True) as other:
        for place in (home, other):
            scene.job("x", place)
        for place in (home, other):
            made(scene, place, 1)
        here = _data(scene, home, "x-etcd")
        assert here is not None
        assert here != _data(scene, other, "x-etcd")
        cluster.kubectl("delete", "rlj", "x", "-n", other, "--wait=true", "--timeout=60s")
        cluster.wait("one is gone", lambda: not scene.pods(other))
        assert len(pod_names(scene, home)) == 2
        assert _data(scene, home, "x-etcd") == here
        assert scene.quiet(3)


def test_a_job_deleted_while_its_pods_start_leaves_none(scene: OperatorScene, leading: None, home: str) -> None:
    cluster = scene.cluster
    for _ in range(3):
        scene.job("x", home)
        cluster.kubectl("delete", "rlj", "x", "-n", home, "--wait=true", "--timeout=60s")
    cluster.wait("no pods", lambda: not scene.pods(home))
    assert scene.quiet(3)
    assert not scene.pods(home)
