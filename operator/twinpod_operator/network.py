"""Who talks to whom: one table, and the NetworkPolicies of a job made from it. Pure.

    TABLE ──► job_policies(run)     one policy a role: what may come in, what may go out
          └─► as_markdown()         the table of docs/network.md

The policies are closed both ways: what is not in the table is refused. Policies add up, so a person opens more (a judge
inside the cluster, an object store on another port) by a policy of their own over the label `twinpod.dev/job`. The
policy of etcd is written by hand (`manifests/etcd/network-policy.yaml`); a test compares it with the table too.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from twinpod.api import names
from twinpod_operator.render_run import Attempt

Manifest = dict[str, Any]


class Party(StrEnum):
    """Somebody who talks or is talked to; the value is the word of the docs."""

    MASTER = "master"
    HYBRID = "hybrid pod"
    ROLLOUT = "rollout pod"
    SANDBOX = "sandbox"
    ETCD = "etcd"
    UPKEEP = "upkeep of etcd"
    OPERATOR = "operator"
    API = "Kubernetes API"
    DNS = "cluster DNS"
    PROMETHEUS = "Prometheus"
    KUBELET = "kubelet of the pod's node"
    OUTSIDE = "addresses outside"


JOB_ROLES = {
    Party.MASTER: names.Role.MASTER,
    Party.HYBRID: names.Role.HYBRID,
    Party.ROLLOUT: names.Role.ROLLOUT,
}
POLICIES: dict[Party, str] = {  # names of those that close their pods both ways
    **{party: names.network_policy_name("JOB", role) for party, role in JOB_ROLES.items()},
    Party.ETCD: "twinpod-etcd",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One row: who opens connections to whom, on which ports, and what for."""

    source: Party
    target: Party
    ports: tuple[int, ...]  # empty: any
    why: str
    protocols: tuple[str, ...] = ("TCP",)


_PROBE = "probes; Kubernetes always lets a node reach its own pods, so no policy names it"
_FETCH = "weights: whoever has a shard serves it"
TABLE: tuple[Flow, ...] = (
    Flow(source=Party.HYBRID, target=Party.MASTER, ports=(names.MASTER_PORT,), why="batches, prompts, answers (gRPC)"),
    Flow(source=Party.ROLLOUT, target=Party.MASTER, ports=(names.MASTER_PORT,), why="prompts, answers (gRPC)"),
    Flow(
        source=Party.MASTER,
        target=Party.HYBRID,
        ports=(names.TRAINING_PORT, names.INFERENCE_PORT),
        why="commands to both halves (gRPC)",
    ),
    Flow(source=Party.MASTER, target=Party.ROLLOUT, ports=(names.INFERENCE_PORT,), why="commands to the half (gRPC)"),
    Flow(
        source=Party.HYBRID,
        target=Party.HYBRID,
        ports=(),
        why="weights and halves (gRPC); ranks: rendezvous, and gloo or NCCL on ports of their choice",
    ),
    Flow(source=Party.ROLLOUT, target=Party.HYBRID, ports=(names.TRAINING_PORT, names.INFERENCE_PORT), why=_FETCH),
    Flow(source=Party.HYBRID, target=Party.ROLLOUT, ports=(names.INFERENCE_PORT,), why=_FETCH),
    Flow(source=Party.ROLLOUT, target=Party.ROLLOUT, ports=(names.INFERENCE_PORT,), why=_FETCH),
    Flow(source=Party.MASTER, target=Party.SANDBOX, ports=(names.SANDBOX_PORT,), why="programs to run for rewards"),
    *(
        flow
        for party in JOB_ROLES
        for flow in (
            Flow(source=party, target=Party.ETCD, ports=(names.ETCD_PORT,), why="operations, statuses, versions"),
            Flow(source=party, target=Party.DNS, ports=(53,), protocols=("UDP", "TCP"), why="names of pods"),
            Flow(source=party, target=Party.OUTSIDE, ports=(443,), why="models, data sets, judges"),
        )
    ),
    Flow(source=Party.PROMETHEUS, target=Party.MASTER, ports=(names.MASTER_HEALTH_PORT,), why="metrics"),
    Flow(source=Party.KUBELET, target=Party.MASTER, ports=(names.MASTER_HEALTH_PORT,), why=_PROBE),
    Flow(
        source=Party.KUBELET,
        target=Party.HYBRID,
        ports=(names.TRAINING_HEALTH_PORT, names.INFERENCE_HEALTH_PORT),
        why=_PROBE,
    ),
    Flow(source=Party.KUBELET, target=Party.ROLLOUT, ports=(names.INFERENCE_HEALTH_PORT,), why=_PROBE),
    Flow(source=Party.ETCD, target=Party.ETCD, ports=(names.ETCD_PORT, names.ETCD_PEER_PORT), why="its members"),
    Flow(source=Party.OPERATOR, target=Party.ETCD, ports=(names.ETCD_PORT,), why="progress, users and roles of jobs"),
    Flow(source=Party.UPKEEP, target=Party.ETCD, ports=(names.ETCD_PORT,), why="backups, defragmentation"),
    Flow(source=Party.PROMETHEUS, target=Party.ETCD, ports=(names.ETCD_METRICS_PORT,), why="metrics"),
    Flow(source=Party.KUBELET, target=Party.ETCD, ports=(names.ETCD_METRICS_PORT,), why=_PROBE),
    *(
        Flow(source=party, target=Party.DNS, ports=(53,), protocols=("UDP", "TCP"), why="names of members")
        for party in (Party.ETCD, Party.OPERATOR, Party.UPKEEP)
    ),
    Flow(source=Party.OPERATOR, target=Party.API, ports=(443, 6443), why="everything it does"),
    Flow(source=Party.PROMETHEUS, target=Party.OPERATOR, ports=(names.OPERATOR_PORT,), why="metrics"),
    Flow(source=Party.KUBELET, target=Party.OPERATOR, ports=(names.OPERATOR_PORT,), why=_PROBE),
)


def job_policies(run: Attempt) -> list[Manifest]:
    """One policy for each role of the job, pods of pools included."""
    return [_policy(run, party, role) for party, role in JOB_ROLES.items()]


def _policy(run: Attempt, party: Party, role: names.Role) -> Manifest:
    incoming = [
        {"from": peers, **_ports(flow)}
        for flow in TABLE
        if flow.target is party and (peers := _peers(run, flow.source))
    ]
    outgoing = [
        {"to": peers, **_ports(flow, run)}
        for flow in TABLE
        if flow.source is party and (peers := _peers(run, flow.target))
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": run.metadata(names.network_policy_name(run.name, role)),
        "spec": {
            "podSelector": _labels(run, role),
            "policyTypes": ["Ingress", "Egress"],
            "ingress": incoming,
            "egress": outgoing,
        },
    }


def _labels(run: Attempt, role: names.Role) -> Manifest:
    return {"matchLabels": {names.LABEL_JOB_UID: run.uid, names.LABEL_ROLE: role.value}}


def _ports(flow: Flow, run: Attempt | None = None) -> Manifest:
    """The `ports` of a rule; an entry without a port is any port of its protocol."""
    numbers = flow.ports
    if run is not None and flow.target is Party.ETCD:
        numbers = tuple(sorted({int(member.rpartition(":")[2]) for member in run.platform.etcd}))
    if not numbers:
        return {"ports": [{"protocol": protocol} for protocol in flow.protocols]}
    return {"ports": [{"protocol": protocol, "port": number} for number in numbers for protocol in flow.protocols]}


def _peers(run: Attempt, party: Party) -> list[Manifest]:
    """Who this is in the words of the API; empty for those whom no policy can name."""
    if party in JOB_ROLES:
        return [{"podSelector": _labels(run, JOB_ROLES[party])}]
    match party:
        case Party.SANDBOX:
            return [{"podSelector": {"matchLabels": {names.LABEL_ROLE: names.Role.SANDBOX.value}}}]
        case Party.ETCD:
            return _etcd(run.platform.etcd)
        case Party.DNS:
            dns = {"podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}, **_namespace("kube-system")}
            return [dns, {"ipBlock": {"cidr": "169.254.20.10/32"}}]  # and the node-local cache, where there is one
        case Party.PROMETHEUS:
            labels = {"matchLabels": {names.LABEL_NAME: "prometheus"}}
            return [{"namespaceSelector": {}, "podSelector": labels}]
        case Party.OUTSIDE:
            # but not the addresses at which clouds tell a machine its credentials
            return [
                {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}},
                {"ipBlock": {"cidr": "::/0", "except": ["fe80::/10", "fd00:ec2::/32"]}},
            ]
    return []


def _etcd(members: tuple[str, ...]) -> list[Manifest]:
    """The namespaces of members that are Services; any address when one is outside the cluster."""
    hosts = [member.rpartition(":")[0].split(".") for member in members]
    inside = sorted({host[1] for host in hosts if len(host) > 2 and host[2] == "svc"})
    outside = any(not (len(host) > 2 and host[2] == "svc") for host in hosts)
    anywhere = [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}] if outside else []
    return [*(_namespace(name) for name in inside), *anywhere]


def _namespace(name: str) -> Manifest:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def enforced_by(flow: Flow) -> tuple[str, ...]:
    """Policies without which the flow would be refused, or its like allowed: that of its source, then its target's."""
    if flow.source is Party.KUBELET:
        return ()
    return tuple(dict.fromkeys(POLICIES[party] for party in (flow.source, flow.target) if party in POLICIES))


def as_markdown() -> str:
    """The table as it stands in the docs."""
    lines = ["| From | To | Port | What for | Let through by |", "|---|---|---|---|---|"]
    for flow in TABLE:
        ports = ", ".join(str(port) for port in flow.ports) or "any"
        protocols = "" if flow.protocols == ("TCP",) else f" ({', '.join(flow.protocols)})"
        policies = ", ".join(f"`{name}`" for name in enforced_by(flow)) or "no policy"
        lines.append(f"| {flow.source} | {flow.target} | {ports}{protocols} | {flow.why} | {policies} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
