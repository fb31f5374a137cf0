"""etcd, API server, controllers and scheduler: their files and command lines.

etcd does not wait for the disk (`--unsafe-no-fsync`): what it wrote survives a kill of any process, not of the
machine, and a test's cluster needs no more. Leader election is off, so that a cluster at rest writes nothing of its own
accord but the leases of nodes.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.cluster.building import program
from tests.cluster.layout import Layout
from tests.cluster.programs import Program, flags

AUDIT_RULES: list[dict[str, object]] = [
    # Reads and leases of Kubernetes' own parts are noise; everything else is kept, reads of others too, without bodies.
    {"level": "None", "userGroups": ["system:nodes"], "verbs": ["get", "list", "watch"]},
    {
        "level": "None",
        "users": ["system:kube-scheduler", "system:kube-controller-manager", "system:kube-proxy", "system:apiserver"],
        "verbs": ["get", "list", "watch"],
    },
    {
        "level": "None",
        "users": ["twinpod:dns", "twinpod:storage", "twinpod:devices"],
        "verbs": ["get", "list", "watch"],
    },
    {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"], "verbs": ["get", "list", "watch"]},
    {"level": "None", "namespaces": ["kube-node-lease"]},
    {"level": "None", "nonResourceURLs": ["/healthz*", "/livez*", "/readyz*", "/version", "/openapi/*"]},
    {
        "level": "None",
        "users": ["system:apiserver"],
        "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}],
    },
    {"level": "Metadata"},
]
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": AUDIT_RULES,
}


def write_files(layout: Layout) -> None:
    """Configuration files that the command lines name."""
    scheduler = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"kubeconfig": str(_kubeconfig(layout, "scheduler")), "qps": 1000, "burst": 2000},
    }
    _config(layout, "audit-policy").write_text(json.dumps(AUDIT_POLICY, indent=1))
    _config(layout, "scheduler").write_text(json.dumps(scheduler, indent=1))


def etcd(layout: Layout) -> Program:
    """The API server's store, on the loopback of its namespace."""
    client, peer = (f"https://127.0.0.1:{layout.port(port)}" for port in ("etcd", "etcd_peer"))
    options = {
        "name": "control",
        "data-dir": layout.root / "etcd",
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"control={peer}",
        "client-cert-auth": True,
        "peer-client-cert-auth": True,
        "unsafe-no-fsync": True,
        "quota-backend-bytes": 8 << 30,
        "snapshot-count": 50000,
        "log-level": "warn",
    }
    for prefix in ("", "peer-"):
        options[f"{prefix}cert-file"] = layout.pki / "etcd.crt"
        options[f"{prefix}key-file"] = layout.pki / "etcd.key"
        options[f"{prefix}trusted-ca-file"] = layout.pki / "ca.crt"
    return Program(name="etcd", command=(str(program("etcd")), *flags(options)), space=_space(layout), level=0)


def api_server(layout: Layout) -> Program:
    """Admission as Kubernetes has it by default (Pod Security, CEL policies of both kinds), RBAC, and the audit log."""
    pki = layout.pki
    options = {
        "advertise-address": layout.control_address,
        "bind-address": "0.0.0.0" if layout.full else "127.0.0.1",
        "secure-port": layout.port("api"),
        "allow-privileged": True,
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "client-ca-file": pki / "ca.crt",
        "tls-cert-file": pki / "apiserver.crt",
        "tls-private-key-file": pki / "apiserver.key",
        "etcd-servers": f"https://127.0.0.1:{layout.port('etcd')}",
        "etcd-cafile": pki / "ca.crt",
        "etcd-certfile": pki / "apiserver-etcd.crt",
        "etcd-keyfile": pki / "apiserver-etcd.key",
        "kubelet-certificate-authority": pki / "ca.crt",
        "kubelet-client-certificate": pki / "apiserver-kubelet.crt",
        "kubelet-client-key": pki / "apiserver-kubelet.key",
        "kubelet-preferred-address-types": "InternalIP",
        "service-cluster-ip-range": layout.service_range,
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": pki / "service-accounts.pub",
        "service-account-signing-key-file": pki / "service-accounts.key",
        "audit-policy-file": _config(layout, "audit-policy"),
        "audit-log-path": layout.audit_log,
        "audit-log-maxsize": 2048,
        "audit-log-maxbackup": 1,
        "profiling": True,  # for `make bench-operator`; asks for an administrator's certificate like everything else
        # Services are called by the addresses of their pods: there is no kube-proxy beside the API server.
        "enable-aggregator-routing": True,
    }
    command = (str(program("kube-apiserver")), *flags(options))
    return Program(
        name="kube-apiserver",
        command=command,
        space=_space(layout),
        level=0,
        stop_s=10.0,
        environment={"GOGC": "400", "GOMEMLIMIT": "8GiB"},  # memory is cheaper here than processors, up to there
    )


def controllers(layout: Layout) -> Program:
    """All controllers. A node that is silent for 25 s counts as lost."""
    kubeconfig = _kubeconfig(layout, "controller-manager")
    options = {
        "kubeconfig": kubeconfig,
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        "bind-address": "127.0.0.1",
        "secure-port": layout.port("controllers"),
        "leader-elect": False,
        "use-service-account-credentials": True,
        "service-account-private-key-file": layout.pki / "service-accounts.key",
        "root-ca-file": layout.pki / "ca.crt",
        "cluster-signing-cert-file": layout.pki / "ca.crt",
        "cluster-signing-key-file": layout.pki / "ca.key",
        "allocate-node-cidrs": False,
        "node-monitor-period": "2s",
        "node-monitor-grace-period": "25s",
        "kube-api-qps": 1000,
        "kube-api-burst": 2000,
        "profiling": False,
    }
    command = (str(program("kube-controller-manager")), *flags(options))
    return Program(name="kube-controller-manager", command=command, space=_space(layout), level=1)


def scheduler(layout: Layout) -> Program:
    """The default profile, without the default's limit of 50 requests a second."""
    kubeconfig = _kubeconfig(layout, "scheduler")
    options = {
        "config": _config(layout, "scheduler"),
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        "bind-address": "127.0.0.1",
        "secure-port": layout.port("scheduler"),
    }
    command = (str(program("kube-scheduler")), *flags(options))
    return Program(name="kube-scheduler", command=command, space=_space(layout), level=1)


def programs(layout: Layout) -> list[Program]:
    """The control plane."""
    return [make(layout) for make in (etcd, api_server, controllers, scheduler)]


def _kubeconfig(layout: Layout, user: str) -> Path:
    return layout.pki / f"{user}.kubeconfig"


def _config(layout: Layout, name: str) -> Path:
    folder = layout.root / "config"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.json"


def _space(layout: Layout) -> str:
    return "control" if layout.full else ""
