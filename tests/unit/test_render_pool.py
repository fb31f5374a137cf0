"""The manifests of a pool: pods that mount the job's things, belong to the pool, and keep their engine up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from twinpod.api import names
from twinpod.api.environment import read_environment
from twinpod.api.load import load_as, load_manifest
from twinpod.api.pod_view import load_job
from twinpod.api.types import RolloutPool
from twinpod.api.yaml_text import write_document
from twinpod.records.life import LifeCycle
from twinpod_operator.render import Manifest, Platform, render_job
from twinpod_operator.render_pool import render_pool

JOB = load_manifest(Path(__file__).resolve().parents[2] / "manifests" / "samples" / "reverse-letters.yaml")
PLATFORM = Platform(master_image="m:1", trainer_image="t:1", inference_image="i:1", etcd=("etcd-0:2379",))
JOB_UID, POOL_UID = "3f2a1b4c-0000-4000-8000-000000000000", "9e8d7c6b-0000-4000-8000-000000000000"


def pool_with(**spec: Any) -> RolloutPool:
    document = {
        "apiVersion": names.API_VERSION,
        "kind": "RolloutPool",
        "metadata": {"name": "extra"},
        "spec": {"job": "reverse-letters", "replicas": 2, **spec},
    }
    return load_as(RolloutPool, write_document(document))


def rendered(pool: RolloutPool, attempts: dict[int, int] | None = None) -> dict[tuple[str, str], Manifest]:
    manifests = render_pool(pool, JOB, platform=PLATFORM, job_uid=JOB_UID, pool_uid=POOL_UID, attempts=attempts)
    return {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in manifests}


def pod(pool: RolloutPool) -> Manifest:
    return next(manifest for (kind, _), manifest in rendered(pool).items() if kind == "Pod")


def test_a_pool_gives_these_objects_and_each_pod_has_its_own_attempt() -> None:
    assert list(rendered(pool_with(), {0: 0, 1: 4})) == [
        ("ConfigMap", "extra-rollout"),
        ("PodDisruptionBudget", "extra-rollout"),
        ("Pod", "extra-rollout-0-a0"),
        ("Pod", "extra-rollout-1-a4"),
    ]


def test_only_the_pods_that_are_wanted_are_made() -> None:
    assert [name for kind, name in rendered(pool_with(replicas=4096), {7: 1}) if kind == "Pod"] == [
        "extra-rollout-7-a1"
    ]
    assert [kind for kind, _ in rendered(pool_with(replicas=4096), {})] == ["ConfigMap", "PodDisruptionBudget"]


def test_a_pool_of_no_pods_keeps_its_other_objects() -> None:
    assert [kind for kind, _ in rendered(pool_with(replicas=0))] == ["ConfigMap", "PodDisruptionBudget"]


def test_children_belong_to_the_pool_and_carry_the_labels_of_both() -> None:
    for manifest in rendered(pool_with()).values():
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("RolloutPool", POOL_UID, True)
        labels = manifest["metadata"]["labels"]
        assert (labels[names.LABEL_JOB_UID], labels[names.LABEL_POOL_UID]) == (JOB_UID, POOL_UID)


def test_the_job_s_service_names_a_pool_s_pods() -> None:
    service = next(
        manifest
        for manifest in render_job(JOB, platform=PLATFORM, uid=JOB_UID, attempt=0)
        if manifest["kind"] == "Service"
    )
    found = pod(pool_with())
    assert service["spec"]["selector"].items() <= found["metadata"]["labels"].items()
    assert (found["spec"]["hostname"], found["spec"]["subdomain"]) == ("extra-rollout-0", "reverse-letters")


def test_the_one_container_is_the_inference_half_with_the_pool_s_engine(tmp_path: Path) -> None:
    pool = pool_with(sharedMemory="128Mi", inference={"kvTokens": 4096, "image": "own:1"})
    spec = pod(pool)["spec"]
    assert "initContainers" not in spec
    (container,) = spec["containers"]
    assert (container["image"], container["args"]) == ("own:1", ["inference"])
    assert "restartPolicy" not in container
    assert container["resources"] == {"requests": {"memory": "128Mi"}}
    # What the processes make of it: job.json and pool.json as the ConfigMaps hold them.
    job_file, pool_file = tmp_path / "job.json", tmp_path / "pool.json"
    (config,) = [
        manifest
        for manifest in render_job(JOB, platform=PLATFORM, uid=JOB_UID, attempt=0)
        if manifest["kind"] == "ConfigMap"
    ]
    job_file.write_text(config["data"]["job.json"], encoding="utf-8")
    pool_file.write_text(rendered(pool)["ConfigMap", "extra-rollout"]["data"]["pool.json"], encoding="utf-8")
    variables = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    assert variables["TWINPOD_POOL_FILE"] == "/etc/twinpod/pool/pool.json"
    moved = {**variables, "TWINPOD_JOB_FILE": str(job_file), "TWINPOD_POOL_FILE": str(pool_file)}
    environment = read_environment(moved)
    assert environment.pod == "extra-rollout-0"
    seen = load_job(environment).spec.hybrid
    assert (seen.life_cycle, seen.inference.kv_tokens, seen.shared_memory) == (LifeCycle.KEEP, 4096, "128Mi")
    assert seen.inference.max_running == JOB.spec.hybrid.inference.max_running


def test_scaling_changes_neither_the_file_that_pods_read_nor_a_pod_that_stays() -> None:
    one, three = rendered(pool_with(replicas=1)), rendered(pool_with(replicas=3))
    assert one.items() <= three.items()


@pytest.mark.parametrize(
    ("sharing", "limits", "claims"),
    [("Claim", None, ["devices"]), ("WholeNode", {"nvidia.com/gpu": "2"}, [])],
)
def test_accelerators_come_by_claim_or_by_the_device_plug_in(sharing: str, limits: object, claims: list[str]) -> None:
    pool = pool_with(accelerators=2, sharing=sharing, deviceClass="gpu.example.com")
    (container,) = pod(pool)["spec"]["containers"]
    assert container["resources"].get("limits") == limits
    assert [claim["name"] for claim in container["resources"].get("claims", [])] == claims
    templates = [manifest for (kind, _), manifest in rendered(pool).items() if kind == "ResourceClaimTemplate"]
    assert len(templates) == len(claims)
    named = [claim["resourceClaimTemplateName"] for claim in pod(pool)["spec"].get("resourceClaims", [])]
    assert [template["metadata"]["name"] for template in templates] == named
    others = [pool_with(accelerators=4, sharing=sharing, deviceClass="gpu.example.com")]
    assert not {name for one in others for _, name in rendered(one)} & set(named), "its spec cannot be changed"
    assert "OMP_NUM_THREADS" not in {entry["name"] for entry in container["env"]}


def test_every_mount_has_its_volume_and_every_volume_its_mount() -> None:
    spec = pod(pool_with())["spec"]
    mounted = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_rendering_twice_gives_the_same_bytes() -> None:
    texts = {json.dumps(list(rendered(pool_with()).values())) for _ in range(3)}
    assert len(texts) == 1
