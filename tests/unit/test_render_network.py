"""The policies of a job say what the table of who talks to whom says, no less and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from twinpod.api import names
from twinpod.api.load import load_manifest
from twinpod.testing.network import End, allowed, matches
from twinpod_operator.network import JOB_ROLES, TABLE, Party, as_markdown, enforced_by
from twinpod_operator.network import POLICIES as CLOSED
from twinpod_operator.render import Manifest, Platform, render_job

ROOT = Path(__file__).resolve().parents[2]
JOB = load_manifest(ROOT / "manifests" / "samples" / "reverse-letters.yaml")
UID, OTHER = "3f2a1b4c-0000-4000-8000-000000000000", "77777777-0000-4000-8000-000000000000"
INSIDE = ("twinpod-etcd.twinpod-system.svc:2379",)
ANY_PORT = 50123  # stands for "any port" in the table


def policies(uid: str = UID, etcd: tuple[str, ...] = INSIDE) -> list[Manifest]:
    platform = Platform(master_image="m", trainer_image="t", inference_image="i", etcd=etcd)
    everything = render_job(JOB, platform=platform, uid=uid, attempt=0)
    return [manifest for manifest in everything if manifest["kind"] == "NetworkPolicy"]


def etcd_policy() -> Manifest:
    """As kustomize installs it."""
    policy: Manifest = yaml.safe_load((ROOT / "manifests" / "etcd" / "network-policy.yaml").read_text())
    policy["metadata"]["namespace"] = "twinpod-system"
    return policy


POLICIES = [*policies(), etcd_policy()]


def pod(role: str, uid: str = UID, namespace: str = "default", address: str = "10.1.0.9") -> End:
    labels = {names.LABEL_JOB_UID: uid, names.LABEL_ROLE: role, **of_twinpod(role)}
    return End(address=address, namespace=namespace, labels=labels, namespace_labels=named(namespace))


def of_twinpod(component: str) -> dict[str, str]:
    return {names.LABEL_NAME: names.MANAGED_BY, names.LABEL_COMPONENT: component}


def of_the_platform(component: str, address: str) -> End:
    home = "twinpod-system"
    return End(address=address, namespace=home, labels=of_twinpod(component), namespace_labels=named(home))


def named(namespace: str) -> dict[str, str]:
    return {"kubernetes.io/metadata.name": namespace}


ENDS: dict[Party, End] = {
    **{party: pod(role.value) for party, role in JOB_ROLES.items()},
    Party.SANDBOX: End(
        address="10.1.0.20",
        namespace="default",
        labels={names.LABEL_ROLE: "sandbox", **of_twinpod("sandbox")},
        namespace_labels=named("default"),
    ),
    Party.ETCD: of_the_platform("etcd", "10.1.0.30"),
    Party.OPERATOR: of_the_platform("operator", "10.1.0.31"),
    Party.UPKEEP: of_the_platform("etcd-upkeep", "10.1.0.32"),
    Party.DNS: End(
        address="10.1.0.40",
        namespace="kube-system",
        labels={"k8s-app": "kube-dns"},
        namespace_labels=named("kube-system"),
    ),
    Party.PROMETHEUS: End(
        address="10.1.0.50",
        namespace="monitoring",
        labels={names.LABEL_NAME: "prometheus"},
        namespace_labels=named("monitoring"),
    ),
    Party.KUBELET: End(address="10.0.0.1", own_node=True),
    Party.OUTSIDE: End(address="93.184.216.34"),
}
BESIDE_ETCD = (Party.OPERATOR, Party.UPKEEP)
PORTS = sorted({port for flow in TABLE for port in flow.ports} | {ANY_PORT, 22, 8080})


def told(source: Party, target: Party, port: int, protocol: str) -> bool:
    """What the table says."""
    return any(
        flow.source is source
        and flow.target is target
        and protocol in flow.protocols
        and (not flow.ports or port in flow.ports)
        for flow in TABLE
    )


@pytest.mark.parametrize("source", ENDS)
@pytest.mark.parametrize("target", ENDS)
def test_the_policies_allow_what_the_table_says_and_nothing_else(source: Party, target: Party) -> None:
    if not {source, target} & set(CLOSED):
        return  # no policy selects these
    if Party.KUBELET in (source, target):
        return  # a node reaches its pods whatever policies say
    for port in PORTS:
        for protocol in ("TCP", "UDP"):
            verdict = allowed(POLICIES, ENDS[source], ENDS[target], port, protocol)
            if source in JOB_ROLES and target in BESIDE_ETCD and port == names.ETCD_PORT:
                continue  # policies of jobs know etcd by its namespace; its neighbours listen to nothing at that port
            assert verdict == told(source, target, port, protocol), (port, protocol)


@pytest.mark.parametrize("target", list(CLOSED))
@pytest.mark.parametrize(
    "stranger",
    [
        pytest.param(End(address="10.1.0.60", namespace="default"), id="a pod without labels"),
        pytest.param(End(address="203.0.113.9"), id="the internet"),
        pytest.param(ENDS[Party.SANDBOX], id="the sandbox"),
    ],
)
def test_strangers_reach_nothing(target: Party, stranger: End) -> None:
    both = [*POLICIES, *policies(OTHER)]
    assert not any(allowed(both, stranger, ENDS[target], port) for port in PORTS)


@pytest.mark.parametrize("target", list(JOB_ROLES))
@pytest.mark.parametrize(
    "stranger", [pod("hybrid", uid=OTHER), pod("hybrid", namespace="elsewhere")], ids=["another job", "elsewhere"]
)
def test_pods_of_other_jobs_reach_nothing_of_a_job(target: Party, stranger: End) -> None:
    both = [*POLICIES, *policies(OTHER)]
    assert not any(allowed(both, stranger, ENDS[target], port) for port in PORTS)


@pytest.mark.parametrize("party", list(CLOSED))
def test_names_are_asked_of_the_node_s_cache_too(party: Party) -> None:
    cache = End(address="169.254.20.10")
    assert allowed(POLICIES, ENDS[party], cache, 53, "UDP")
    assert not allowed(POLICIES, ENDS[party], cache, 80)


def test_the_table_names_the_policies_that_exist_and_whoever_has_none() -> None:
    named_there = {name for flow in TABLE for name in enforced_by(flow)}
    there = {policy["metadata"]["name"].replace(JOB.metadata.name, "JOB") for policy in POLICIES}
    assert named_there == there == set(CLOSED.values())
    free = {(flow.source, flow.target) for flow in TABLE if not enforced_by(flow) and flow.source is not Party.KUBELET}
    assert {source for source, _ in free} == {Party.OPERATOR, Party.UPKEEP, Party.PROMETHEUS}
    assert not {party for pair in free for party in pair} & set(CLOSED)


def test_a_pod_can_reach_no_cloud_metadata_and_no_api_server() -> None:
    metadata, api = End(address="169.254.169.254"), End(address="10.0.0.1")
    assert not any(allowed(POLICIES, ENDS[party], metadata, port) for party in JOB_ROLES for port in (80, 443))
    for party in JOB_ROLES:
        assert not allowed(POLICIES, ENDS[party], api, 6443)


def test_an_etcd_outside_the_cluster_is_reached_at_its_own_port() -> None:
    outside = policies(etcd=("etcd.example.com:12379",))
    assert allowed(outside, ENDS[Party.MASTER], End(address="198.51.100.7"), 12379)
    assert not allowed(outside, ENDS[Party.MASTER], End(address="198.51.100.7"), 2379)


SELECTORS: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"matchLabels": {"a": "1"}}, True),
    ({"matchLabels": {"a": "2"}}, False),
    ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
    ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False),
    ({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}, True),
    ({"matchExpressions": [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}]}, False),
    ({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}, True),
]


@pytest.mark.parametrize(("selector", "verdict"), SELECTORS)
def test_selectors_are_read_as_the_api_reads_them(selector: dict[str, Any], verdict: bool) -> None:
    assert matches(selector, {"a": "1"}) is verdict


@pytest.mark.parametrize(
    ("rules", "verdict"),
    [
        ([], False),
        ([{}], True),
        ([{"ports": [{"port": 80}]}], True),
        ([{"ports": [{"port": 80, "protocol": "UDP"}]}], False),
        ([{"ports": [{"port": 70, "endPort": 90}]}], True),
        ([{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}], False),  # blocks are for addresses outside
        ([{"from": [{"podSelector": {}}]}], True),
        ([{"from": [{"namespaceSelector": {"matchLabels": {"x": "y"}}}]}], False),
        ([{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"z": "1"}}}]}], False),
    ],
)
def test_ingress_rules_are_read_as_the_api_reads_them(rules: list[dict[str, Any]], verdict: bool) -> None:
    end = End(address="10.1.0.1", namespace="default", labels={"a": "1"})
    policy = {
        "metadata": {"namespace": "default"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": rules},
    }
    assert allowed([policy], end, end, 80) is verdict
    assert allowed([], end, end, 80)


def test_the_docs_hold_the_table() -> None:
    text = (ROOT / "docs" / "network.md").read_text(encoding="utf-8")
    assert as_markdown() in text, "put the output of `python -m twinpod_operator.network` into docs/network.md"
