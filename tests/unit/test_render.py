"""The manifests of a job: names that outlive attempts, the pod's rules of `restricted`, and nothing left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from twinpod.api import names
from twinpod.api.environment import read_environment
from twinpod.api.load import load_manifest
from twinpod.api.reading_place import from_text, place_of
from twinpod.api.types import RLJob
from twinpod.api.yaml_text import read_document, write_document
from twinpod.errors import InputError
from twinpod_operator.render import Manifest, Platform, render_job

SAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "reverse-letters.yaml"
PLATFORM = Platform(master_image="m:1", trainer_image="t:1", inference_image="i:1", etcd=("etcd-0:2379", "etcd-1:2379"))
UID = "3f2a1b4c-0000-4000-8000-000000000000"


def job_with(**spec: Any) -> RLJob:
    document = read_document(SAMPLE.read_text(encoding="utf-8"))
    document["spec"] |= spec
    return load_manifest(write_document(document))


def rendered(job: RLJob, attempt: int = 0) -> dict[tuple[str, str], Manifest]:
    manifests = render_job(job, platform=PLATFORM, uid=UID, attempt=attempt)
    return {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in manifests}


def pods(job: RLJob, attempt: int = 0) -> list[Manifest]:
    return [manifest for (kind, _), manifest in rendered(job, attempt).items() if kind == "Pod"]


def containers(pod: Manifest) -> Iterator[Manifest]:
    yield from pod["spec"].get("initContainers", ())
    yield from pod["spec"]["containers"]


def hybrid(job: RLJob, attempt: int = 0) -> Manifest:
    (pod, *_) = [pod for pod in pods(job, attempt) if pod["metadata"]["labels"][names.LABEL_ROLE] == "hybrid"]
    return pod


def part(pod: Manifest, name: str) -> Manifest:
    (found,) = [container for container in containers(pod) if container["name"] == name]
    return found


def test_a_job_gives_these_objects() -> None:
    assert list(rendered(job_with(), attempt=3)) == [
        ("ConfigMap", "reverse-letters-job"),
        ("Service", "reverse-letters"),
        ("ServiceAccount", "reverse-letters"),
        ("NetworkPolicy", "reverse-letters-master"),
        ("NetworkPolicy", "reverse-letters-hybrid"),
        ("NetworkPolicy", "reverse-letters-rollout"),
        ("PodDisruptionBudget", "reverse-letters"),
        ("PersistentVolumeClaim", "reverse-letters-state-3f2a1b4c"),
        ("PersistentVolumeClaim", "reverse-letters-snapshots-3f2a1b4c"),
        ("Pod", "reverse-letters-master-a3"),
        ("Pod", "reverse-letters-hybrid-0-a3"),
    ]


def test_everything_is_labelled_and_owned_but_kept_volumes() -> None:
    for (kind, _), manifest in rendered(job_with()).items():
        assert manifest["metadata"]["labels"][names.LABEL_JOB_UID] == UID
        owned = "ownerReferences" in manifest["metadata"]
        assert owned == (kind != "PersistentVolumeClaim")
    for manifest in rendered(job_with(storage={"whenDeleted": "Delete"})).values():
        assert (
            manifest["metadata"]["ownerReferences"][0] | {"controller": True}
            == manifest["metadata"]["ownerReferences"][0]
        )


def test_the_configuration_is_the_job_with_its_defaults() -> None:
    job = job_with()
    text = rendered(job)["ConfigMap", "reverse-letters-job"]["data"]["job.json"]
    assert load_manifest(text).spec == job.spec
    assert json.loads(text)["spec"]["rollout"]["segmentTokens"] == 6


def test_the_configuration_says_where_volumes_are_read_and_no_attempt_changes_it() -> None:
    patch = {"spec": {"nodeSelector": {"disk": "here"}}}
    first, second = (rendered(job_with(master={"podPatch": patch}), attempt) for attempt in (1, 4))
    config = first["ConfigMap", "reverse-letters-job"]
    assert config == second["ConfigMap", "reverse-letters-job"]
    place = from_text(config["metadata"]["annotations"][names.ANNOTATION_READER])
    assert place == place_of(first["Pod", "reverse-letters-master-a1"])
    assert (place.image, place.spec["nodeSelector"]) == ("m:1", {"disk": "here"})


def test_names_change_with_the_attempt_and_addresses_do_not() -> None:
    first, second = hybrid(job_with(), 0), hybrid(job_with(), 1)
    assert (first["metadata"]["name"], second["metadata"]["name"]) == (
        "reverse-letters-hybrid-0-a0",
        "reverse-letters-hybrid-0-a1",
    )
    assert first["spec"] == second["spec"]
    assert first["spec"]["hostname"] == "reverse-letters-hybrid-0"
    annotation = names.ANNOTATION_TEMPLATE_HASH
    assert first["metadata"]["annotations"][annotation] == second["metadata"]["annotations"][annotation]


def test_a_process_learns_which_attempt_s_pod_it_is_in_from_the_pod_s_label() -> None:
    for attempt in (1, 4):
        pod = hybrid(job_with(), attempt)
        for container in containers(pod):
            told = {entry["name"]: entry for entry in container["env"]}["TWINPOD_ATTEMPT"]
            assert told["valueFrom"]["fieldRef"]["fieldPath"] == f"metadata.labels['{names.LABEL_ATTEMPT}']"
        assert pod["metadata"]["labels"][names.LABEL_ATTEMPT] == str(attempt)


def test_the_template_hash_tells_templates_apart() -> None:
    annotation = names.ANNOTATION_TEMPLATE_HASH
    hashes = {
        hybrid(job)["metadata"]["annotations"][annotation]
        for job in (job_with(), job_with(hybrid={"sharedMemory": "2Gi"}), job_with(hybrid={"trainer": {"image": "x"}}))
    }
    assert len(hashes) == 3


def test_the_service_names_pods_before_they_are_ready() -> None:
    spec = rendered(job_with())["Service", "reverse-letters"]["spec"]
    assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", True)
    labels = hybrid(job_with())["metadata"]["labels"]
    assert spec["selector"].items() <= labels.items()


@pytest.mark.parametrize("replicas", [1, 3])
def test_every_container_has_the_environment_that_processes_read(replicas: int) -> None:
    job = job_with(hybrid={"replicas": replicas})
    assert len(pods(job)) == 1 + replicas
    for pod in pods(job):
        for container in containers(pod):
            given = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
            environment = read_environment(given)
            assert environment.pod == pod["spec"]["hostname"]
            assert environment.address == f"{environment.pod}.reverse-letters.default.svc"
            assert environment.master == "reverse-letters-master.reverse-letters.default.svc:7400"
            assert environment.etcd == ("etcd-0:2379", "etcd-1:2379")
            mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
            for folder in (environment.job_file.parent, environment.tls, environment.etcd_tls, environment.run):
                assert str(folder) in mounts


def test_an_environment_without_its_variables_names_them_all() -> None:
    with pytest.raises(InputError, match=r"not set: TWINPOD_JOB_NAME, .*TWINPOD_MASTER, TWINPOD_ETCD"):
        read_environment({"TWINPOD_POD": "p"})


def test_folders_can_be_moved_by_the_environment() -> None:
    texts = ["JOB_NAME", "NAMESPACE", "JOB_UID", "POD", "ADDRESS", "MASTER", "ETCD"]
    variables = {f"TWINPOD_{name}": "x" for name in texts}
    environment = read_environment({**variables, "TWINPOD_SHM": "/dev/shm/other", "TWINPOD_RUN": "/tmp/run"})
    assert (str(environment.shm), str(environment.model_folder)) == ("/dev/shm/other", "/tmp/run/model")
    assert str(environment.state) == "/var/lib/twinpod/state"


def test_pods_fit_pod_security_restricted_and_know_nothing_of_the_api() -> None:
    for pod in pods(job_with()):
        spec = pod["spec"]
        assert spec["restartPolicy"] == "Never"
        assert spec["enableServiceLinks"] is spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostIPC", "hostPID", "hostNetwork", "shareProcessNamespace"} & spec.keys()
        for container in containers(pod):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
        for volume in spec["volumes"]:
            assert set(volume) - {"name"} <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}


def test_the_engine_s_half_is_a_native_sidecar_whose_startup_is_its_own() -> None:
    pod = hybrid(job_with())
    inference, trainer = part(pod, "inference"), part(pod, "trainer")
    assert inference["restartPolicy"] == "Always"
    assert (inference["command"], inference["args"]) == (["python", "-m", "twinpod_sidecar"], ["inference"])
    assert (trainer["command"], trainer["args"]) == (["python", "-m", "twinpod_sidecar"], ["training"])
    for container, port in ((inference, 7412), (trainer, 7411)):
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"] == {"path": "/healthz", "port": port, "scheme": "HTTP"}
        assert port in [entry["containerPort"] for entry in container["ports"]]


def test_port_names_fit_and_differ_within_a_pod() -> None:
    for pod in pods(job_with(hybrid={"replicas": 2})):
        found = [port["name"] for container in containers(pod) for port in container["ports"]]
        assert len(found) == len(set(found))
        assert max(map(len, found)) <= 15


def test_every_mount_has_its_volume_and_every_volume_its_mount() -> None:
    for pod in pods(job_with()):
        mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}


def test_both_containers_share_the_memory_and_the_trainer_pays_for_it() -> None:
    resources = {"requests": {"memory": "3Gi", "cpu": 2}, "limits": {"memory": "4Gi"}}
    pod = hybrid(job_with(hybrid={"sharedMemory": "1Gi", "trainer": {"resources": resources}}))
    volume = next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "shm")
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}
    trainer, inference = part(pod, "trainer"), part(pod, "inference")
    assert trainer["resources"] == {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "5Gi"}}
    for container in (trainer, inference):
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_accelerators_by_claim_are_seen_by_both_containers() -> None:
    job = job_with(hybrid={"accelerators": 4, "trainer": {"tensorParallel": 4}, "deviceClass": "gpu.example.com"})
    pod = hybrid(job)
    (template,) = [one for (kind, _), one in rendered(job).items() if kind == "ResourceClaimTemplate"]
    assert template["apiVersion"] == "resource.k8s.io/v1"
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"] == {"deviceClassName": "gpu.example.com", "allocationMode": "ExactCount", "count": 4}
    (claim,) = pod["spec"]["resourceClaims"]
    assert claim["resourceClaimTemplateName"] == template["metadata"]["name"]
    assert template["metadata"]["name"].startswith("reverse-letters-devices-")
    for name in ("trainer", "inference"):
        assert part(pod, name)["resources"]["claims"] == [{"name": claim["name"]}]
    assert any(toleration["key"] == "nvidia.com/gpu" for toleration in pod["spec"]["tolerations"])


def test_other_devices_have_another_template_as_its_spec_cannot_be_changed() -> None:
    def template(**spec: Any) -> str:
        pod = hybrid(job_with(hybrid={"accelerators": 4, "deviceClass": "a.example.com"} | spec))
        return str(pod["spec"]["resourceClaims"][0]["resourceClaimTemplateName"])

    assert template() == template(sharedMemory="3Gi")
    assert len({template(), template(accelerators=8), template(deviceClass="b.example.com")}) == 3


def test_a_whole_node_is_asked_for_once_and_seen_by_both() -> None:
    pod = hybrid(job_with(hybrid={"accelerators": 8, "sharing": "WholeNode"}))
    assert part(pod, "trainer")["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert "limits" not in part(pod, "inference")["resources"]
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"} in part(pod, "inference")["env"]
    assert (pod["spec"]["runtimeClassName"], "resourceClaims" in pod["spec"]) == ("nvidia", False)


def test_without_accelerators_nothing_asks_for_any() -> None:
    text = json.dumps(render_job(job_with(), platform=PLATFORM, uid=UID, attempt=0))
    for word in ("nvidia", "resourceClaims", "ResourceClaimTemplate", "CUDA_VISIBLE_DEVICES"):
        assert word not in text.replace("gpu.nvidia.com", "")


@pytest.mark.parametrize(
    ("storage", "claims"),
    [
        ({"state": {"existingClaim": "mine"}}, ["reverse-letters-snapshots-3f2a1b4c"]),
        ({"snapshots": {"existingClaim": "ours"}}, ["reverse-letters-state-3f2a1b4c"]),
    ],
)
def test_claims_are_made_only_where_the_job_names_none(storage: dict[str, Any], claims: list[str]) -> None:
    job = job_with(storage=storage)
    assert [name for kind, name in rendered(job) if kind == "PersistentVolumeClaim"] == claims
    master = pods(job)[0]
    used = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in master["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert used["state"] == storage.get("state", {}).get("existingClaim", "reverse-letters-state-3f2a1b4c")
    own = "reverse-letters-snapshots-3f2a1b4c"
    assert used["snapshots"] == storage.get("snapshots", {}).get("existingClaim", own)


def test_images_of_the_job_come_before_the_platform_s() -> None:
    pod = hybrid(job_with(hybrid={"trainer": {"image": "mine:2"}}))
    assert (part(pod, "trainer")["image"], part(pod, "inference")["image"]) == ("mine:2", "i:1")
