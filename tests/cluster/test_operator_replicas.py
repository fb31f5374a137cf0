"""Two replicas of the operator: one leads, the other takes over, and what was stopped in between writes nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import control_plane, namespace
from tests.cluster.operator_scene import OperatorScene, opened

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
__all__ = ["control_plane"]


STOPPED_S = 30.0
LEASE_S = "15"  # less than that, so that the other takes over meanwhile


@pytest.fixture
def scene(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorScene]:
    yield from opened(control_plane, tmp_path_factory.mktemp("operator"))


@pytest.fixture
def home(control_plane: Cluster) -> Iterator[str]:
    with namespace(control_plane, restricted=True) as name:
        yield name


def test_a_stopped_leader_writes_nothing_after_another_took_over(scene: OperatorScene, home: str) -> None:
    cluster = scene.cluster
    first = scene.lead(TWINPOD_LEASE_S=LEASE_S)
    second = scene.start(TWINPOD_LEASE_S=LEASE_S)
    cluster.wait("the second waits", lambda: "leads; waiting" in second.text)
    before, began = scene.holder(), time.monotonic()
    first.signal(signal.SIGSTOP)
    scene.job("x", home)
    cluster.wait("the second leads", lambda: scene.holder() not in ("", before), timeout_s=30)
    taken = cluster.audit_mark()
    cluster.wait("both pods", lambda: len(scene.pods(home)) == 2)
    cluster.wait("it was stopped for 30 s", lambda: time.monotonic() - began > STOPPED_S, timeout_s=STOPPED_S)
    assert second.alive
    first.signal(signal.SIGCONT)
    first.process.wait(20)
    assert first.process.returncode == 1
    assert scene.holder() != before
    stale = [one for one in cluster.audit(taken) if one.agent.endswith(before) and one.writes and one.code < 400]
    assert stale == [], "whether it would have been refused or not"
    led = [one for one in cluster.audit() if one.agent.endswith(before) and one.writes and one.code < 400]
    assert led, "its writes before are told apart from the other's"
    second.stop()
    assert second.process.returncode == 0
    assert scene.holder() == "", "given away, so that the next one need not wait"


def test_a_restarted_operator_writes_nothing_for_what_is_as_it_should_be(scene: OperatorScene, home: str) -> None:
    cluster = scene.cluster
    first = scene.lead()
    for name in ("x", "y"):
        scene.job(name, home)
    cluster.wait("all pods", lambda: len(scene.pods(home)) == 4)
    assert scene.quiet(5)
    first.stop()
    pods = {pod["metadata"]["uid"] for pod in scene.pods(home)}
    mark = cluster.audit_mark()
    second = scene.lead(TWINPOD_TRAINER_IMAGE="twinpod/trainer:next")
    assert scene.quiet(8)
    assert [line for line in scene.writes(mark) if f" {home}/" in line] == []
    assert {pod["metadata"]["uid"] for pod in scene.pods(home)} == pods, "a new template leaves running pods alone"
    second.stop()


def test_certificates_of_a_minute_are_renewed_again_and_again(scene: OperatorScene, home: str) -> None:
    cluster = scene.cluster
    scene.lead(TWINPOD_CERTIFICATE_S="60")
    scene.job("x", home)

    def versions() -> set[str]:
        found = cluster.get("secrets", namespace=home)["items"]
        return {one["metadata"]["resourceVersion"] for one in found if one["metadata"]["name"] in ("x-tls", "x-etcd")}

    cluster.wait("made", lambda: len(versions()) == 2)
    authority = cluster.get("secret", "x-ca", namespace=home)
    for _ in range(2):
        before = versions()
        cluster.wait("both are new", lambda before=before: not before & versions(), timeout_s=45)
    assert cluster.get("secret", "x-ca", namespace=home) == authority, "the authority stays"
