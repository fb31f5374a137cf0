"""Real pods while what they lean on goes away: the platform's etcd, certificates that end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import cluster
from tests.cluster.layout import ClusterFault
from tests.cluster.platform import SYSTEM, install, install_default, remove_etcd
from tests.cluster.platform_scene import PlatformScene, platform, scene
from tests.flow.survival_scene import Moment, Scene, until

from twinpod.api.names import Reason

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]
__all__ = ["cluster", "platform", "scene"]

OUTAGE_S = 60.0
PHASES = (Moment.GENERATE, Moment.TRAIN, Moment.WEIGHTS, Moment.SWITCH, Moment.SNAPSHOT, Moment.COMMIT)


def test_a_run_outlives_its_etcd_in_every_phase(scene: PlatformScene, tmp_path: Path) -> None:
    cluster = scene.cluster
    scene.job("x", iterations=100_000, storage={"snapshotEvery": 5})
    scene.wait_iteration("x", 3)
    books = books_of(scene, "x", tmp_path)
    for moment in PHASES:
        freeze_etcd(books, moment)
        with without_etcd(cluster):
            scene.wait("x", "it says so", lambda: scene.condition("x", "Degraded")[1] == Reason.STORE_UNREACHABLE, 60)
            assert scene.stays(lambda: scene.status("x")["attempt"] == 1, OUTAGE_S)
        before = books.look().commits
        scene.wait("x", f"it goes on after {moment}", lambda before=before: books.look().commits > before + 3, 120)
        scene.wait("x", "healthy", lambda: scene.condition("x", "Degraded")[0] == "False", 60)
        print(f"etcd was away in {moment}; the run stands at {books.look().iteration}")
    report = scene.inspect("x")
    assert (scene.status("x")["attempt"], scene.status("x")["restarts"], report["resumes"]) == (1, 0, 0)
    scene.delete("x")


def test_a_deletion_does_not_wait_for_etcd(scene: PlatformScene) -> None:
    cluster = scene.cluster
    scene.job("x", iterations=100_000, hybrid={"lifeCycle": "Keep"})
    scene.wait_iteration("x", 3)
    with without_etcd(cluster):
        began = time.monotonic()
        cluster.kubectl("delete", "rlj", "x", "-n", scene.home, "--timeout=150s")
        print(f"deleted after {time.monotonic() - began:.0f} s without etcd")


def test_three_members_of_etcd_outlive_each_of_them(scene: PlatformScene) -> None:
    cluster = scene.cluster
    install_default(cluster)
    try:
        scene.job("x", iterations=100_000, hybrid={"lifeCycle": "Keep"})
        scene.wait_iteration("x", 3)
        for member in range(3):
            os.kill(etcd_process(member), signal.SIGKILL)
            before = scene.iteration("x")
            scene.wait("x", "it goes on", lambda before=before: scene.iteration("x") > before + 5, 60)
            cluster.kubectl("rollout", "status", "statefulset/twinpod-etcd", "-n", SYSTEM, "--timeout=120s")
        assert (scene.status("x")["attempt"], scene.status("x")["restarts"]) == (1, 0)
        for name in ("twinpod-etcd-backup", "twinpod-etcd-defragment"):
            cluster.kubectl("create", "job", f"--from=cronjob/{name}", f"{name}-now", "-n", SYSTEM)
            cluster.kubectl("wait", "--for=condition=Complete", f"job/{name}-now", "-n", SYSTEM, "--timeout=90s")
            cluster.kubectl("delete", "job", f"{name}-now", "-n", SYSTEM)
        scene.delete("x")
    finally:
        remove_etcd(cluster)
        install(cluster)


def books_of(scene: PlatformScene, job: str, folder: Path) -> Scene:
    """The books of a job, where the StorageClass of this cluster has them."""
    claims = scene.cluster.get("persistentvolumeclaims", namespace=scene.home)["items"]
    (name,) = (one["spec"]["volumeName"] for one in claims if one["metadata"]["name"].startswith(f"{job}-state"))
    volume = scene.cluster.get("persistentvolume", name)
    (folder / "state").symlink_to(volume["spec"]["hostPath"]["path"])
    return Scene(folder)


def freeze_etcd(books: Scene, moment: Moment) -> None:
    """SIGSTOP, in that phase of the run: some phases are over within hundredths of a second."""
    pid = etcd_process()

    def aim() -> bool:
        before = books.look()
        if before.moment is not moment:
            return False
        os.kill(pid, signal.SIGSTOP)
        if books.look().phase == before.phase:
            return True
        os.kill(pid, signal.SIGCONT)
        return False

    assert until(aim, 120.0, 0.002), f"the run is never in {moment}"


def etcd_process(member: int = 0) -> int:
    """Of the platform's etcd; this machine has others."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = f"HOSTNAME=twinpod-etcd-{member}".encode() in (entry / "environ").read_bytes().split(b"\0")
            if ours and (entry / "comm").read_text() == "etcd\n":
                return int(entry.name)
    raise ClusterFault("the platform's etcd does not run")


class without_etcd:  # noqa: N801  # reads as a word in `with`
    """Within the block the platform's etcd has no member."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __enter__(self) -> None:
        self._scale(0)
        self._cluster.kubectl("wait", "--for=delete", "pod/twinpod-etcd-0", "-n", SYSTEM, "--timeout=90s")

    def __exit__(self, *_: object) -> None:
        self._scale(1)
        self._cluster.kubectl("rollout", "status", "statefulset/twinpod-etcd", "-n", SYSTEM, "--timeout=120s")

    def _scale(self, replicas: int) -> None:
        self._cluster.kubectl("scale", "statefulset/twinpod-etcd", f"--replicas={replicas}", "-n", SYSTEM)


def test_certificates_of_three_minutes_cost_nothing_in_ten(scene: PlatformScene) -> None:
    """Whoever comes after the first ones have ended is let in by new ones."""
    with operator_set(scene.cluster, TWINPOD_CERTIFICATE_S="180"):
        scene.job("x", iterations=100_000, hybrid={"lifeCycle": "Keep"}, storage={"snapshotEvery": 200})
        scene.pool("helpers", "x", 0)
        scene.wait_iteration("x", 3)
        seen: set[str] = set()

        def well() -> bool:
            seen.add(scene.cluster.get("secret", "x-tls", namespace=scene.home)["data"]["tls.crt"])
            status = scene.status("x")
            return (status["attempt"], status["restarts"]) == (1, 0) and scene.condition("x", "Degraded")[0] == "False"

        assert scene.stays(well, 480)
        scene.scale("helpers", 1)
        assert scene.stays(well, 120)
        report = scene.inspect("x")
        done = report["iterations_committed"]
        assert [one["iteration"] for one in report["iterations"]] == list(range(1, done + 1))
        assert (report["resumes"], report["epoch"]) == (0, 1)
        assert "helpers-rollout-0" in {row["pod"] for row in report["pods_by_iteration"] if row["iteration"] > done - 5}
        print(f"{len(seen)} certificates, {done} iterations")
        assert len(seen) >= 6
        scene.wait("x", "it goes on", lambda: scene.iteration("x") > done + 3, 60)
        scene.delete("x")


class operator_set:  # noqa: N801  # reads as a word in `with`
    """Within the block the operator runs with these settings."""

    def __init__(self, cluster: Cluster, **settings: str) -> None:
        self._cluster, self._settings = cluster, settings

    def __enter__(self) -> None:
        self._set(*(f"{name}={value}" for name, value in self._settings.items()))

    def __exit__(self, *_: object) -> None:
        self._set(*(f"{name}-" for name in self._settings))

    def _set(self, *words: str) -> None:
        self._cluster.kubectl("set", "env", "deployment/twinpod-operator", *words, "-n", SYSTEM)
        self._cluster.kubectl("rollout", "status", "deployment/twinpod-operator", "-n", SYSTEM, "--timeout=120s")
