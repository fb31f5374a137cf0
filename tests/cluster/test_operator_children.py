"""The operator against a real API server: what one job makes, what it keeps true, what it leaves alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import control_plane, namespace
from tests.cluster.operator_scene import USER, OperatorScene, scene

from twinpod.api import names

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
__all__ = ["control_plane", "scene"]
RESYNC_S = 5  # everything is looked at so often, whatever happens or does not


@pytest.fixture(scope="module")
def leading(scene: OperatorScene) -> Iterator[None]:
    replica = scene.lead(TWINPOD_RESYNC_S=f"{RESYNC_S}s")
    yield
    replica.stop()


@pytest.fixture
def home(control_plane: Cluster) -> Iterator[str]:
    with namespace(control_plane, restricted=True) as name:
        yield name


def children(cluster: Cluster, home: str) -> set[tuple[str, str]]:
    kinds = (
        "pods,services,configmaps,secrets,serviceaccounts,persistentvolumeclaims,networkpolicies,poddisruptionbudgets"
    )
    found = cluster.get(kinds, "-l", names.LABEL_JOB, namespace=home)["items"]
    return {(one["kind"], one["metadata"]["name"]) for one in found}


def all_made(scene: OperatorScene, home: str, pods: int = 2) -> bool:
    return len(scene.pods(home)) == pods and bool(scene.conditions(home, "x"))


def test_a_job_has_its_children_and_its_status_and_then_nothing_is_written(
    scene: OperatorScene, leading: None, home: str
) -> None:
    cluster = scene.cluster
    scene.job("x", home)
    cluster.wait("both pods", lambda: all_made(scene, home))
    made = children(cluster, home)
    assert {
        ("Pod", "x-master-a1"),
        ("Pod", "x-hybrid-0-a1"),
        ("Service", "x"),
        ("ConfigMap", "x-job"),
        ("Secret", "x-tls"),
        ("Secret", "x-etcd"),
        ("Secret", "x-ca"),
    } <= made
    assert {kind for kind, _ in made} >= {"NetworkPolicy", "PodDisruptionBudget", "PersistentVolumeClaim"}
    for pod in scene.pods(home):
        scene.play(home, pod["metadata"]["name"])
    cluster.wait("ready", lambda: scene.conditions(home, "x")["WorkersReady"][0] == "True")
    assert scene.quiet(3, home=home), "nothing more to say"
    assert scene.stays_quiet(3 * RESYNC_S, home) == []
    errors = [one for one in cluster.audit() if one.user == USER and one.namespace == home and one.code >= 400]
    assert errors == []


EDITS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("configmap", "x-job", {"data": {"job.json": "{}"}}, "data.job|json"),
    ("service", "x", {"spec": {"publishNotReadyAddresses": False}}, "spec.publishNotReadyAddresses"),
    ("serviceaccount", "x", {"automountServiceAccountToken": True}, "automountServiceAccountToken"),
    ("networkpolicy", "x-master", {"spec": {"ingress": []}}, "spec.ingress"),
    ("networkpolicy", "x-hybrid", {"spec": {"egress": [{}]}}, "spec.egress"),
    ("networkpolicy", "x-rollout", {"spec": {"podSelector": {"matchLabels": {"a": "b"}}}}, "spec.podSelector"),
    ("poddisruptionbudget", "x", {"spec": {"minAvailable": 0}}, "spec.minAvailable"),
    ("secret", "x-tls", {"data": {"tls.key": ""}}, "data.tls|key"),
    ("secret", "x-etcd", {"data": {"ca.crt": "YQ=="}}, "data.ca|crt"),
)


def value(manifest: Any, path: str) -> Any:
    """A field by its dotted path; | stands for a dot in a name."""
    for part in path.split("."):
        manifest = manifest.get(part.replace("|", "."))
    return manifest


def test_every_child_that_is_deleted_or_edited_is_put_back(scene: OperatorScene, leading: None, home: str) -> None:
    cluster = scene.cluster
    scene.job("x", home)
    cluster.wait("both pods", lambda: all_made(scene, home))
    before = children(cluster, home) - {("Pod", pod["metadata"]["name"]) for pod in scene.pods(home)}
    for kind, name in sorted(before - {("Secret", "x-ca")}):
        if kind == "PersistentVolumeClaim":
            continue  # in use by pods: its deletion waits for them
        cluster.kubectl("delete", kind, name, "-n", home, "--wait=true")
    cluster.wait("they are back", lambda: before <= children(cluster, home))
    edited = {(kind.capitalize(), name) for kind, name, *_ in EDITS}
    others = {one for one in before if one[0] != "PersistentVolumeClaim"} - {("Secret", "x-ca")}
    assert {(kind.capitalize(), name) for kind, name in others} == edited, "each has a row in the table"
    for kind, name, edit, path in EDITS:
        whole = cluster.get(kind, name, namespace=home)
        both = edit | {"metadata": {**edit.get("metadata", {}), "annotations": {"theirs": "1"}}}
        cluster.kubectl("patch", kind, name, "-n", home, "--type=merge", "-p", json.dumps(both))

        def mended(kind: str = kind, name: str = name, path: str = path, whole: Any = whole) -> bool:
            found = cluster.get(kind, name, namespace=home)
            ours = value(found, path)
            same = bool(ours) if kind == "secret" else ours == value(whole, path)
            return same and found["metadata"]["annotations"]["theirs"] == "1"

        cluster.wait(f"{kind} {name}: our field is back, their annotation stays", mended)
    assert scene.quiet(3, home=home)
    assert scene.stays_quiet(2 * RESYNC_S, home) == []


def test_a_deleted_job_leaves_only_what_it_keeps(scene: OperatorScene, leading: None, home: str) -> None:
    cluster = scene.cluster
    scene.job("x", home)
    cluster.wait("both pods", lambda: all_made(scene, home))
    cluster.kubectl("delete", "rlj", "x", "-n", home, "--wait=true", "--timeout=60s")
    cluster.wait("only claims", lambda: {kind for kind, _ in children(cluster, home)} == {"PersistentVolumeClaim"})
    scene.job("x", home)
    cluster.wait("both pods again", lambda: all_made(scene, home))
    claims = [name for kind, name in children(cluster, home) if kind == "PersistentVolumeClaim"]
    assert len(claims) == 4, "no old state is adopted"


def test_a_quota_that_refuses_a_pod_stands_on_the_job(scene: OperatorScene, leading: None, home: str) -> None:
    cluster = scene.cluster
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "1"}}}
    cluster.apply(quota, namespace=home)
    cluster.wait(
        "quota is known", lambda: "used" in cluster.get("resourcequota", "q", namespace=home).get("status", {})
    )
    scene.job("x", home)

    def told() -> bool:
        ready = scene.conditions(home, "x").get("Ready", ("", "", ""))
        return ready[1] == names.Reason.QUOTA_REFUSED and "exceeded quota" in ready[2]

    cluster.wait("the quota is the reason", told)
    cluster.kubectl("delete", "resourcequota", "q", "-n", home)
    cluster.wait("both pods", lambda: all_made(scene, home), timeout_s=90)


def test_a_mutating_policy_and_limits_lead_to_no_endless_writes(scene: OperatorScene, leading: None, home: str) -> None:
    cluster = scene.cluster
    limits = {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": {"name": "l"},
        "spec": {"limits": [{"type": "Container", "default": {"cpu": "2"}, "defaultRequest": {"cpu": "100m"}}]},
    }
    cluster.apply(limits, namespace=home)
    match = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": home}}}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"]}
    expression = 'Object{metadata: Object.metadata{labels: {"app.kubernetes.io/name": "theirs"}}}'
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": home},
        "spec": {
            "matchConstraints": {"resourceRules": [rule | {"resources": ["configmaps", "services"]}]} | match,
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": home},
        "spec": {"policyName": home},
    }
    cluster.apply(policy, binding)
    try:
        probe = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probe", "labels": {"a": "b"}}}

        def mutates() -> bool:
            cluster.kubectl("delete", "configmap", "probe", "-n", home, "--ignore-not-found")
            cluster.apply(probe, namespace=home)
            labels = cluster.get("configmap", "probe", namespace=home)["metadata"]["labels"]
            return labels.get("app.kubernetes.io/name") == "theirs"

        cluster.wait("the policy is in force", mutates)
        scene.job("x", home)
        cluster.wait("both pods", lambda: all_made(scene, home))
        assert scene.quiet(3, home=home), "what a policy changes is accepted"
        assert scene.stays_quiet(3 * RESYNC_S, home) == []
        config = cluster.get("configmap", "x-job", namespace=home)
        assert config["metadata"]["labels"]["app.kubernetes.io/name"] == "theirs"
    finally:
        cluster.kubectl("delete", "mutatingadmissionpolicybinding,mutatingadmissionpolicy", home)
