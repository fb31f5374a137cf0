"""Reading pod manifests: what local mode honours, what it may ignore, what it refuses by name."""

from __future__ import annotations

from typing import Any

import pytest

from twinpod.errors import InputError
from twinpod.local.manifest import expand, read_pod
from twinpod.local.plan import VolumeKind


def pod(spec: dict[str, Any] | None = None, container: dict[str, Any] | None = None) -> dict[str, Any]:
    main = {"name": "main", "command": ["python", "-m", "x"]} | (container or {})
    return {
        "metadata": {"name": "j-master", "namespace": "ml", "labels": {"role": "master"}},
        "spec": {"restartPolicy": "Never", "containers": [main]} | (spec or {}),
    }


def test_a_pod_without_anything_special_is_read() -> None:
    read = read_pod(pod())
    assert read.name == "j-master"
    assert read.grace_s == 30
    assert read.containers[0].command == ("python", "-m", "x")


def test_a_pod_under_a_service_has_all_its_dns_names() -> None:
    read = read_pod(pod({"hostname": "j-master", "subdomain": "j"}))
    assert read.names == (
        *("j-master", "j-master.j", "j-master.j.ml", "j-master.j.ml.svc", "j-master.j.ml.svc.cluster.local"),
    )


def test_init_containers_that_restart_are_sidecars_and_the_others_are_steps() -> None:
    side = {"name": "side", "command": ["a"], "restartPolicy": "Always"}
    step = {"name": "step", "command": ["b"]}
    read = read_pod(pod({"initContainers": [side, step]}))
    assert [one.name for one in read.sidecars] == ["side"]
    assert [one.name for one in read.steps] == ["step"]


@pytest.mark.parametrize(
    ("spec", "container", "field"),
    [
        ({"hostNetwork": True}, {}, "spec.hostNetwork"),
        ({"restartPolicy": "Always"}, {}, "spec.restartPolicy"),
        ({}, {"envFrom": []}, "spec.containers[0].envFrom"),
        ({}, {"lifecycle": {}}, "spec.containers[0].lifecycle"),
        ({}, {"command": []}, "spec.containers[0].command"),
        ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, {}, "spec.volumes[0].hostPath"),
        ({}, {"startupProbe": {"grpc": {"port": 1}}}, "spec.containers[0].startupProbe.grpc"),
        ({}, {"volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": "x"}]}, "mountPropagation"),
        ({}, {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {}}}]}, "valueFrom.secretKeyRef"),
        ({}, {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]}, "fieldPath"),
    ],
)
def test_a_field_that_local_mode_does_not_honour_is_refused_by_name(
    spec: dict[str, Any], container: dict[str, Any], field: str
) -> None:
    with pytest.raises(InputError) as refused:
        read_pod(pod(spec, container))
    assert field in refused.value.where


def test_fields_that_mean_nothing_on_one_machine_are_let_pass() -> None:
    spec = {"nodeSelector": {"a": "b"}, "securityContext": {"runAsUser": 5}, "serviceAccountName": "x"}
    container = {"image": "twinpod/master", "resources": {"limits": {"cpu": "1"}}, "readinessProbe": {"anything": 1}}
    assert read_pod(pod(spec, container)).containers[0].name == "main"


def test_volumes_of_every_kind_are_read() -> None:
    volumes = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
        {"name": "run", "emptyDir": {}},
        {"name": "job", "configMap": {"name": "j-job"}},
        {"name": "tls", "secret": {"secretName": "j-tls"}},
        {"name": "state", "persistentVolumeClaim": {"claimName": "j-state"}},
    ]
    read = read_pod(pod({"volumes": volumes})).volumes
    assert [(one.kind, one.source, one.size) for one in read] == [
        (VolumeKind.MEMORY, "", 256 << 20),
        (VolumeKind.FOLDER, "", 0),
        (VolumeKind.CONFIG, "j-job", 0),
        (VolumeKind.SECRET, "j-tls", 0),
        (VolumeKind.CLAIM, "j-state", 0),
    ]


def test_a_probe_may_name_its_port() -> None:
    container = {
        "ports": [{"name": "health", "containerPort": 7410}],
        "startupProbe": {"httpGet": {"path": "/healthz", "port": "health"}, "failureThreshold": 60, "periodSeconds": 1},
    }
    probe = read_pod(pod({}, container)).containers[0].startup
    assert probe is not None
    assert (probe.port, probe.path, probe.failures, probe.period_s) == (7410, "/healthz", 60, 1.0)


def test_variables_are_expanded_as_kubernetes_does() -> None:
    env = [
        {"name": "A", "value": "1"},
        {"name": "B", "value": "x$(A)"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "ROLE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['role']"}}},
    ]
    read = read_pod(pod({}, {"env": env, "args": ["--b=$(B)", "$(UNKNOWN)"]})).containers[0]
    assert dict(read.environment) == {"A": "1", "B": "x1", "POD": "j-master", "ROLE": "master"}
    assert read.command[-2:] == ("--b=x1", "$(UNKNOWN)")


@pytest.mark.parametrize(("text", "value"), [("$(A)", "1"), ("$$(A)", "$(A)"), ("$A", "$A"), ("a$(A)b$(A)", "a1b1")])
def test_expansion_table(text: str, value: str) -> None:
    assert expand(text, {"A": "1"}) == value
