"""Whatever goes wrong and in whatever order: a job comes to its wanted set or to an end, and an end is for ever."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twinpod.api.load import load_manifest
from twinpod.api.names import Condition
from twinpod.api.types import RLJob
from twinpod.api.yaml_text import read_document, write_document
from twinpod.testing.fake_cluster import FakeCluster
from twinpod_operator.nouns import Finding, Key

SAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "reverse-letters.yaml"
FAULTS = ("crash", "evict", "remove", "node", "sidecar", "refuse", "hold", "release", "lossy", "whole", "suspend", "go")
MOST = 3


def _job() -> RLJob:
    document = read_document(SAMPLE.read_text(encoding="utf-8"))
    document["metadata"] = {"name": "x", "namespace": "demo"}
    policy = {"maxRestarts": MOST, "maxInfrastructureRestarts": 4, "backoffSeconds": 5, "maxBackoffSeconds": 20}
    document["spec"] |= {"failurePolicy": policy}
    return load_manifest(write_document(document))


JOB = _job()


def strike(cluster: FakeCluster, key: Key, fault: str, chance: random.Random) -> None:
    """One thing goes wrong, or right again."""
    pods = [view for view in cluster.views(key) if not view.ended and not view.deleting]
    victim = chance.choice(pods) if pods else None
    match fault:
        case "lossy":
            cluster.lose = lambda: chance.random() < 0.4
        case "whole":
            cluster.lose = lambda: False
        case "hold":
            cluster.hold()
        case "release":
            cluster.release()
        case "refuse":
            found = Finding(reason="QuotaRefused", message="no more pods")
            cluster.refuse = lambda manifest: found if chance.random() < 0.5 else None
        case "suspend" | "go":
            cluster.edit(key, suspend=fault == "suspend")
        case "node" if victim is not None and victim.node and not cluster.lost_nodes:
            cluster.lose_node(victim.node)
        case "crash" if victim is not None and victim.phase == "Running":
            cluster.crash(victim.name, chance.choice([1, 3, 137]))
        case "sidecar" if victim is not None and victim.role == "hybrid" and victim.phase == "Running":
            cluster.restart_sidecar(victim.name)
        case "evict" if victim is not None:
            cluster.evict(victim.name)
        case "remove" if victim is not None:
            cluster.remove(victim.name)
        case _:
            pass


def check(cluster: FakeCluster, key: Key) -> None:
    """What must hold at every moment: one live pod a place, and budgets that are kept."""
    free = [view for view in cluster.views(key) if not view.deleting and not view.ended]
    places = Counter((view.role, view.index) for view in free)
    assert all(count == 1 for count in places.values()), [view.name for view in free]
    status = cluster.resources[key].status
    assert status.get("infrastructureFaults", 0) <= 4
    assert status.get("applicationFaults", 0) <= MOST + 3  # sidecars that fell together with the last crash


def over(cluster: FakeCluster, key: Key) -> bool:
    """The job has an outcome."""
    ends = (Condition.SUCCEEDED.value, Condition.FAILED.value)
    conditions = cluster.resources[key].status.get("conditions", ())
    return any(item["type"] in ends and item["status"] == "True" for item in conditions)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(FAULTS), st.integers(1, 4)), max_size=12), st.integers(0, 1000))
def test_after_any_faults_a_job_runs_or_has_ended_and_then_nothing_is_written(
    faults: list[tuple[str, int]], seed: int
) -> None:
    cluster, chance = FakeCluster(), random.Random(seed)
    key = cluster.submit(JOB)
    for fault, looks in faults:
        strike(cluster, key, fault, chance)
        for _ in range(looks):
            cluster.reconcile(key)
            check(cluster, key)
            cluster.settle(chance.choice([0.0, 1.0, 7.0]))
    cluster.release()
    cluster.lose, cluster.refuse = (lambda: False), (lambda manifest: None)
    cluster.edit(key, suspend=False)
    cluster.run(key, 400, step=4)
    check(cluster, key)
    running = [view for view in cluster.views(key) if view.ready and not view.deleting]
    assert over(cluster, key) or len(running) == 2
    cluster.run(key, 110, step=55)  # to the edge of the certificates' life
    writes, now = cluster.writes, cluster.now
    renewals = {child.renew_at for child in cluster.resources[key].children.values() if child.renew_at}
    cluster.now = min(now, min(renewals, default=now + 1) - 1)
    for _ in range(3):
        cluster.reconcile(key)
    assert cluster.writes == writes


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from(("remove", "evict", "node", "hold", "release", "lossy", "go")), max_size=8),
    st.integers(0, 99),
)
def test_a_finished_job_never_comes_back(faults: list[str], seed: int) -> None:
    cluster, chance = FakeCluster(), random.Random(seed)
    key = cluster.submit(JOB)
    cluster.run(key, 20)
    cluster.crash("x-master-a1", 0)
    while not over(cluster, key):
        cluster.reconcile(key)
    for fault in faults:
        strike(cluster, key, fault, chance)
        cluster.reconcile(key)
        cluster.settle(chance.choice([1.0, 40.0]))
    cluster.lose = lambda: False
    cluster.release()
    cluster.run(key, 200, step=20)
    assert over(cluster, key)
    assert cluster.created == ["x-master-a1", "x-hybrid-0-a1"]
    assert all(view.ended for view in cluster.views(key) if view.node not in cluster.lost_nodes)
