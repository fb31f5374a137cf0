"""What the renderer makes is taken by a real API server, in a namespace where Pod Security `restricted` holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import control_plane, namespace

from twinpod.api import names
from twinpod.api.load import load_as, load_manifest
from twinpod.api.types import RLJob, RolloutPool
from twinpod.api.yaml_text import read_document
from twinpod_operator.render import Manifest, Platform, render_job
from twinpod_operator.render_pool import render_pool

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
__all__ = ["control_plane"]
SAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "reverse-letters.yaml"
PLATFORM = Platform(
    master_image="m:1", trainer_image="t:1", inference_image="i:1", etcd=("twinpod-etcd.twinpod-system.svc:2379",)
)
UID, POOL_UID = "3f2a1b4c-0000-4000-8000-000000000000", "9e8d7c6b-0000-4000-8000-000000000000"
PATCH: dict[str, Any] = {
    "metadata": {"labels": {"team": "a"}},
    "spec": {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "volumes": [{"name": "data", "emptyDir": {}}],
        "initContainers": [{"name": "proxy", "image": "p:1", "restartPolicy": "Always"}],
        "containers": [{"name": "inference", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
    },
}
SPECS: dict[str, dict[str, Any]] = {
    "cpu": {},
    "claim": {"hybrid": {"replicas": 2, "accelerators": 4}},
    "whole node": {"hybrid": {"accelerators": 8, "sharing": "WholeNode", "lifeCycle": "Sleep"}},
    "patched": {"hybrid": {"podPatch": PATCH}},
    "from a snapshot": {"model": {"fromSnapshot": {"claim": "other"}}},
}


@pytest.fixture(scope="module")
def home(control_plane: Cluster) -> Iterator[str]:
    with namespace(control_plane, restricted=True) as name:
        yield name


def job(home: str, spec: dict[str, Any], labels: dict[str, str] | None = None) -> RLJob:
    document = read_document(SAMPLE.read_text(encoding="utf-8"))
    document["metadata"] |= {"namespace": home, "labels": labels or {}}
    document["spec"] |= spec
    return load_manifest(json.dumps(document))


def take(cluster: Cluster, home: str, manifests: list[Manifest]) -> None:
    """Each is created as a dry run, with strict fields and no warning; accounts for real, as pods need them."""
    for manifest in manifests:
        real = manifest["kind"] == "ServiceAccount"
        if real:
            manifest = {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": []}}
        arguments = ["apply", "--server-side"] if real else ["create", "--dry-run=server"]
        text = json.dumps(manifest)
        done = cluster.kubectl(*arguments, "--validate=strict", "-n", home, "-f", "-", stdin=text, check=False)
        where = f"{manifest['kind']} {manifest['metadata']['name']}"
        assert done.returncode == 0, f"{where}: {done.stderr}"
        warnings = [line for line in done.stderr.splitlines() if "runtimeClassName" not in line]
        assert not warnings, f"{where}: {warnings}"


@pytest.mark.parametrize("shape", SPECS)
def test_a_job_s_children_are_taken(control_plane: Cluster, home: str, shape: str) -> None:
    if shape == "whole node":
        handler = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}}
        control_plane.apply({**handler, "handler": "nvidia"})
    take(control_plane, home, render_job(job(home, SPECS[shape]), platform=PLATFORM, uid=UID, attempt=1))


def test_a_queued_job_s_children_are_taken(control_plane: Cluster, home: str) -> None:
    queued = job(home, {}, {names.QUEUE_LABEL: "team-a"})
    take(control_plane, home, render_job(queued, platform=PLATFORM, uid=UID, attempt=0))


@pytest.mark.parametrize("spec", [{}, {"accelerators": 2}, {"podPatch": PATCH}], ids=["cpu", "claim", "patched"])
def test_a_pool_s_children_are_taken(control_plane: Cluster, home: str, spec: dict[str, Any]) -> None:
    document = {
        "apiVersion": names.API_VERSION,
        "kind": "RolloutPool",
        "metadata": {"name": "extra", "namespace": home},
        "spec": {"job": "reverse-letters", "replicas": 2, **spec},
    }
    served = job(home, {})
    take(control_plane, home, render_job(served, platform=PLATFORM, uid=UID, attempt=0))
    pool = load_as(RolloutPool, json.dumps(document))
    take(control_plane, home, render_pool(pool, served, platform=PLATFORM, job_uid=UID, pool_uid=POOL_UID))
