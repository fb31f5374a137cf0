"""How a job shares a cluster: gates, queues, drains, patches, and where its weights start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from twinpod.api import names
from twinpod.api.load import ManifestError, load_manifest
from twinpod.api.types import RLJob
from twinpod.api.yaml_text import read_document, write_document
from twinpod_operator.pod_patch import patched
from twinpod_operator.render import Manifest, Platform, render_job

SAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "reverse-letters.yaml"
PLATFORM = Platform(master_image="m:1", trainer_image="t:1", inference_image="i:1", etcd=("etcd-0:2379",))
UID = "3f2a1b4c-0000-4000-8000-000000000000"


def job_with(labels: dict[str, str] | None = None, **spec: Any) -> RLJob:
    document = read_document(SAMPLE.read_text(encoding="utf-8"))
    document["metadata"]["labels"] = labels or {}
    document["spec"] |= spec
    return load_manifest(write_document(document))


def of_kind(job: RLJob, kind: str, attempt: int = 0) -> list[Manifest]:
    everything = render_job(job, platform=PLATFORM, uid=UID, attempt=attempt)
    return [manifest for manifest in everything if manifest["kind"] == kind]


def pod_of(job: RLJob, role: str) -> Manifest:
    return next(pod for pod in of_kind(job, "Pod") if pod["metadata"]["labels"][names.LABEL_ROLE] == role)


def container(pod: Manifest, name: str) -> Manifest:
    spec = pod["spec"]
    return next(one for one in (*spec.get("initContainers", ()), *spec["containers"]) if one["name"] == name)


def test_pods_without_a_queue_wait_behind_our_gate() -> None:
    for pod in of_kind(job_with(), "Pod"):
        assert pod["spec"]["schedulingGates"] == [{"name": "twinpod.dev/gang"}]
        assert not [key for key in pod["metadata"]["labels"] if "kueue" in key]


def test_pods_with_a_queue_are_one_group_over_all_attempts_and_kueue_gates_them() -> None:
    job = job_with({names.QUEUE_LABEL: "team-a"}, hybrid={"replicas": 2})
    for attempt in (0, 1):
        for pod in of_kind(job, "Pod", attempt):
            labels, annotations = pod["metadata"]["labels"], pod["metadata"]["annotations"]
            assert labels["kueue.x-k8s.io/queue-name"] == "team-a"
            assert labels["kueue.x-k8s.io/pod-group-name"] == "reverse-letters-3f2a1b4c"
            assert annotations["kueue.x-k8s.io/pod-group-total-count"] == "3"  # the master counts
            assert "schedulingGates" not in pod["spec"]


def test_pods_use_an_account_that_has_no_token() -> None:
    (account,) = of_kind(job_with(), "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    for pod in of_kind(job_with(), "Pod"):
        assert pod["spec"]["serviceAccountName"] == account["metadata"]["name"]


@pytest.mark.parametrize("replicas", [1, 4])
def test_a_drain_waits_for_every_pod_of_a_job_but_not_for_sick_ones(replicas: int) -> None:
    job = job_with(hybrid={"replicas": replicas})
    (budget,) = of_kind(job, "PodDisruptionBudget")
    spec = budget["spec"]
    assert (spec["minAvailable"], spec["unhealthyPodEvictionPolicy"]) == (1 + replicas, "AlwaysAllow")
    (expression,) = spec["selector"]["matchExpressions"]
    roles = {pod["metadata"]["labels"][names.LABEL_ROLE] for pod in of_kind(job, "Pod")}
    assert set(expression["values"]) == roles


def test_autoscalers_are_told_to_leave_pods_alone() -> None:
    for pod in of_kind(job_with(), "Pod"):
        annotations = pod["metadata"]["annotations"]
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        assert annotations["karpenter.sh/do-not-disrupt"] == "true"


def test_a_lost_node_is_given_up_after_a_minute() -> None:
    for pod in of_kind(job_with(), "Pod"):
        seconds = {entry["key"]: entry.get("tolerationSeconds") for entry in pod["spec"]["tolerations"]}
        assert seconds == {"node.kubernetes.io/not-ready": 60, "node.kubernetes.io/unreachable": 60}


def test_several_hybrid_pods_meet_at_a_named_port() -> None:
    ports = {name: [port["name"] for port in of_kind(job_with(hybrid=h), "Service")[0]["spec"]["ports"]]
             for name, h in (("one", {}), ("two", {"replicas": 2}))}  # fmt: skip
    assert "rendezvous" not in ports["one"]
    assert "rendezvous" in ports["two"]


def test_threads_are_limited_where_processes_share_cores_and_not_beside_accelerators() -> None:
    def limited(job: RLJob, role: str, name: str) -> bool:
        return "OMP_NUM_THREADS" in {entry["name"] for entry in container(pod_of(job, role), name)["env"]}

    with_devices = job_with(hybrid={"accelerators": 1})
    assert limited(job_with(), "hybrid", "trainer")
    assert limited(job_with(), "hybrid", "inference")
    assert not limited(with_devices, "hybrid", "trainer")
    assert not limited(with_devices, "hybrid", "inference")
    assert limited(with_devices, "master", "master")


def test_priority_and_the_master_s_resources_come_from_the_job() -> None:
    job = job_with(priorityClassName="high", master={"resources": {"limits": {"memory": "2Gi"}}})
    assert {pod["spec"]["priorityClassName"] for pod in of_kind(job, "Pod")} == {"high"}
    assert container(pod_of(job, "master"), "master")["resources"] == {"limits": {"memory": "2Gi"}}
    default = container(pod_of(job_with(), "master"), "master")["resources"]
    assert default == {"requests": {"cpu": "250m", "memory": "512Mi"}}


def test_weights_of_another_job_are_mounted_read_only_in_every_pod() -> None:
    job = job_with(model={"fromSnapshot": {"claim": "other-snapshots-1"}})
    assert job.spec.model.folder == "/var/lib/twinpod/source/export"
    for pod in of_kind(job, "Pod"):
        volume = next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "source")
        assert volume["persistentVolumeClaim"] == {"claimName": "other-snapshots-1", "readOnly": True}
        for one in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
            assert {"name": "source", "mountPath": "/var/lib/twinpod/source", "readOnly": True} in one["volumeMounts"]


def test_a_snapshot_that_is_no_export_needs_the_shape_beside_it() -> None:
    model = {**job_with().as_manifest()["spec"]["model"], "fromSnapshot": {"claim": "c", "folder": "iteration-000010"}}
    job = job_with(model=model)
    assert job.spec.model.folder is None
    assert job.spec.model.from_snapshot is not None
    assert job.spec.model.from_snapshot.path == "/var/lib/twinpod/source/iteration-000010"


PATCH: dict[str, Any] = {
    "metadata": {"labels": {"team": "a"}, "annotations": {"example.com/x": "1"}},
    "spec": {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
        "initContainers": [{"name": "proxy", "image": "p:1", "restartPolicy": "Always"}],
        "containers": [
            {"name": "trainer", "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}]},
            {
                "name": "inference",
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                "resources": {"limits": {"rdma/hca": "1"}},
            },
        ],
    },
}


def test_a_patch_adds_and_what_is_ours_stays() -> None:
    plain, job = pod_of(job_with(hybrid={}), "hybrid"), job_with(hybrid={"podPatch": PATCH})
    pod = pod_of(job, "hybrid")
    spec = pod["spec"]
    assert (pod["metadata"]["labels"]["team"], spec["nodeSelector"]) == ("a", {"disk": "ssd"})
    assert spec["tolerations"] == [*plain["spec"]["tolerations"], {"key": "dedicated", "operator": "Exists"}]
    assert spec["volumes"] == [*plain["spec"]["volumes"], PATCH["spec"]["volumes"][0]]
    assert [one["name"] for one in spec["initContainers"]] == ["proxy", "inference"]
    assert spec["initContainers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container(pod, "trainer")["env"]
    assert container(pod, "inference")["volumeMounts"][-1] == {"name": "data", "mountPath": "/data"}
    assert container(pod, "inference")["resources"]["limits"] == {"rdma/hca": "1"}
    assert container(pod, "trainer")["env"][:-1] == container(plain, "trainer")["env"]
    annotation = names.ANNOTATION_TEMPLATE_HASH
    assert pod["metadata"]["annotations"][annotation] != plain["metadata"]["annotations"][annotation]
    assert pod_of(job, "master") == pod_of(job_with(hybrid={}), "master")


def test_an_empty_patch_changes_nothing_and_the_given_pod_is_never_changed() -> None:
    job = job_with(hybrid={"podPatch": PATCH})
    plain = pod_of(job_with(hybrid={}), "hybrid")
    before = json.dumps(plain)
    assert job.spec.hybrid.pod_patch is not None
    assert patched(plain, job.spec.hybrid.pod_patch) != plain
    assert json.dumps(plain) == before
    assert pod_of(job_with(hybrid={"podPatch": {}}), "hybrid") == plain


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ({"hostNetwork": True}, "spec.hybrid.podPatch.spec.hostNetwork: cannot be patched: it would raise the pod's"),
        ({"serviceAccountName": "admin"}, "podPatch.spec.serviceAccountName: cannot be patched: it would raise"),
        ({"securityContext": {"runAsUser": 0}}, "podPatch.spec.securityContext: cannot be patched: it would raise"),
        ({"restartPolicy": "Always"}, "podPatch.spec.restartPolicy: cannot be patched: it is Never: the operator"),
        ({"nodeName": "n"}, "podPatch.spec.nodeName: cannot be patched: it would go around the scheduler"),
        ({"nodeSelektor": {}}, "podPatch.spec.nodeSelektor: unknown field; did you mean nodeSelector?"),
        (
            {"volumes": [{"name": "x", "hostPath": {"path": "/"}}]},
            "podPatch.spec.volumes[0].hostPath: cannot be patched: it would raise the pod's privileges",
        ),
        ({"volumes": [{"name": "tls", "emptyDir": {}}]}, "podPatch.spec.volumes: cannot replace a volume of Twinpod"),
        (
            {"volumes": [{"name": "x", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]},
            'spec.volumes "x" cannot hold a service account token',
        ),
        ({"resourceClaims": [{"name": "devices"}]}, 'spec.resourceClaims "devices" cannot be patched'),
        ({"initContainers": [{"name": "inference"}]}, 'spec.initContainers "inference" cannot be patched here'),
        (
            {"initContainers": [{"name": "x", "securityContext": {"privileged": True}}]},
            'spec.initContainers "x" cannot have a securityContext',
        ),
        (
            {"containers": [{"name": "trainer", "env": [{"name": "CUDA_VISIBLE_DEVICES", "value": "0"}]}]},
            "podPatch.spec.containers: env cannot set TWINPOD_*, CUDA_VISIBLE_DEVICES",
        ),
        (
            {"containers": [{"name": "trainer", "volumeMounts": [{"name": "x", "mountPath": "/dev/shm"}]}]},
            "podPatch.spec.containers: volumeMounts cannot be in folders of Twinpod or the system",
        ),
        (
            {"containers": [{"name": "trainer", "resources": {"limits": {"memory": "1Gi"}}}]},
            "podPatch.spec.containers: resources cannot set cpu, memory, nvidia.com/gpu",
        ),
        (
            {"containers": [{"name": "trainer", "image": "x"}]},
            "podPatch.spec.containers[0].image: cannot be patched: it has a field of its own",
        ),
        ({"containers": [{"name": "master"}]}, "podPatch.spec.containers: may only name trainer, inference"),
    ],
)
def test_a_patch_is_refused_with_the_reason(spec: dict[str, Any], line: str) -> None:
    with pytest.raises(ManifestError) as caught:
        job_with(hybrid={"podPatch": {"spec": spec}})
    assert line in "\n".join(caught.value.problems)


@pytest.mark.parametrize("key", ["twinpod.dev/job-uid", "kueue.x-k8s.io/queue-name", "app.kubernetes.io/name"])
def test_labels_that_select_pods_cannot_be_patched(key: str) -> None:
    with pytest.raises(ManifestError, match="cannot set keys of twinpod"):
        job_with(hybrid={"podPatch": {"metadata": {"labels": {key: "x"}}}})


def test_rendering_twice_gives_the_same_bytes() -> None:
    job = job_with({names.QUEUE_LABEL: "q"}, hybrid={"replicas": 3, "accelerators": 2, "podPatch": PATCH})
    texts = {json.dumps(render_job(job, platform=PLATFORM, uid=UID, attempt=2)) for _ in range(3)}
    assert len(texts) == 1
