"""What a real API server says to bad manifests, to changes, and to those who ask what a field means."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.bad_manifests import BAD, CHANGED, GOOD, Bad
from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import control_plane, namespace

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
__all__ = ["control_plane"]
CRDS = Path(__file__).resolve().parents[2] / "manifests" / "crds"


@pytest.fixture(scope="module")
def home(control_plane: Cluster) -> Iterator[str]:
    files = [str(path) for path in sorted(CRDS.glob("*s.yaml"))]
    control_plane.kubectl("apply", "--server-side", *(word for path in files for word in ("-f", path)))
    control_plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    with namespace(control_plane) as name:
        for manifest in GOOD.values():
            assert not told(control_plane, name, manifest)
        yield name


def told(cluster: Cluster, home: str, manifest: dict[str, Any]) -> str:
    """What kubectl prints when it refuses; empty when it applies."""
    done = cluster.kubectl("apply", "-n", home, "-f", "-", stdin=json.dumps(manifest), check=False)
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize("row", BAD, ids=lambda row: row.name)
def test_a_bad_manifest_is_refused_with_this_line(control_plane: Cluster, home: str, row: Bad) -> None:
    manifest = row.manifest
    if manifest["metadata"] == GOOD[row.kind]["metadata"]:
        manifest["metadata"] = {"name": "bad"}
    assert row.kubectl in told(control_plane, home, manifest)


@pytest.mark.parametrize("row", CHANGED, ids=lambda row: row.name)
def test_a_change_is_refused_with_this_line(control_plane: Cluster, home: str, row: Bad) -> None:
    assert row.kubectl in told(control_plane, home, row.manifest)


def test_a_suspended_job_and_an_empty_pool_can_be_changed(control_plane: Cluster, home: str) -> None:
    job, pool = copy.deepcopy(GOOD["RLJob"]), copy.deepcopy(GOOD["RolloutPool"])
    job["metadata"]["name"] = pool["metadata"]["name"] = "still"
    job["spec"]["suspend"], pool["spec"]["replicas"] = True, 0
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (job, {"iterations": 99, "priorityClassName": "high", "master": {"resources": {"limits": {"cpu": "1"}}}}),
        (job, {"suspend": False, "rollout": {"maxTokens": 7}}),
        (job, {"suspend": True, "failurePolicy": {"maxRestarts": 9}, "ttlSecondsAfterFinished": 60}),
        (pool, {"accelerators": 1, "inference": {"kvTokens": 4096}}),
        (pool, {"replicas": 3, "sharedMemory": "2Gi"}),
    ]
    for manifest in (job, pool):
        assert not told(control_plane, home, manifest)
    for manifest, fields in changes:
        manifest["spec"] |= fields
        assert not told(control_plane, home, manifest), fields


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("rlj", "One training run of a language model by reinforcement learning."),
        ("rlj.spec.suspend", "Stop the pods and keep the state"),
        ("rlj.spec.hybrid.sharedMemory", "two slots of the model's weights"),
        ("rlj.spec.failurePolicy.schedulingDeadlineSeconds", "may wait for nodes"),
        ("rlj.spec.model.fromSnapshot.claim", "Volume claim in the same namespace"),
        ("rlj.spec.hybrid.handOver.residue", "Memory of a device that the resting side may still hold"),
        ("rlj.spec.hybrid.network.interface", "GLOO_SOCKET_IFNAME"),
        ("rp.spec.inference.dataParallel", "Engines in a pod"),
        ("rp.spec.sharing", "How a pod gets its accelerators"),
        ("sbx.spec.limits.seconds", "FIELD: seconds <integer>"),
    ],
)
def test_explain_answers_in_words(control_plane: Cluster, home: str, path: str, words: str) -> None:
    assert words in " ".join(control_plane.kubectl("explain", path).stdout.split())


def test_get_shows_the_columns_by_short_name_and_category(control_plane: Cluster, home: str) -> None:
    header = control_plane.kubectl("get", "rlj", "-n", home).stdout.splitlines()[0].split()
    assert header == ["NAME", "READY", "REASON", "ITERATION", "REWARD", "PODS", "GPUS", "RESTARTS", "AGE"]
    header = control_plane.kubectl("get", "rp", "-n", home).stdout.splitlines()[0].split()
    assert header == ["NAME", "READY", "DESIRED", "REASON", "WEIGHT-VERSION", "AGE"]
    wide = control_plane.kubectl("get", "rlj", "-n", home, "-o", "wide").stdout.splitlines()[0].split()
    assert wide[-3:] == ["QUEUE", "ENGINE", "WEIGHT-VERSION"]
    everything = control_plane.kubectl("get", "rl", "-n", home, "-o", "name").stdout
    for kind in ("rljob", "rolloutpool", "sandboxpool"):
        assert f"{kind}.twinpod.dev/" in everything
