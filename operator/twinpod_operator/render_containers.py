"""The pieces of a container: environment, mounts, probes, security, resources. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twinpod.api import names, quantity
from twinpod.api.pods import Resources

Manifest = dict[str, Any]
GPU_RESOURCE = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What the installation gives to every job: images where a job names none, etcd's members, a storage class."""

    master_image: str
    trainer_image: str
    inference_image: str
    etcd: tuple[str, ...]  # host:port of each member
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    storage_class: str = ""  # empty: the cluster's default
    grace_s: int = 60  # from SIGTERM to SIGKILL
    deletion_s: float = 120.0  # a deletion ends after it at the latest, with etcd down or a node gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A container's port; names are unique within a pod and at most 15 characters long."""

    name: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One container before it becomes a manifest."""

    name: str
    image: str
    command: tuple[str, ...]
    args: tuple[str, ...]
    ports: tuple[Port, ...]
    health: int  # port of the plain health service
    mounts: tuple[Manifest, ...]
    environment: dict[str, str]
    resources: Manifest


# Not a value: pods of all attempts have one template, and it alone tells whether a template has changed.
ATTEMPT: Manifest = {
    "name": "TWINPOD_ATTEMPT",
    "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{names.LABEL_ATTEMPT}']"}},
}


def container(shape: Shape, platform: Platform) -> Manifest:
    """The container's manifest, fit for Pod Security `restricted`."""
    manifest: Manifest = {
        "name": shape.name,
        "image": shape.image,
        "imagePullPolicy": platform.image_pull_policy,
        "command": list(shape.command),
        "env": [*({"name": name, "value": value} for name, value in shape.environment.items()), ATTEMPT],
        "ports": [{"name": port.name, "containerPort": port.number, "protocol": "TCP"} for port in shape.ports],
        "resources": shape.resources,
        "volumeMounts": list(shape.mounts),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **probes(shape.health),
    }
    if shape.args:
        manifest["args"] = list(shape.args)
    return manifest


def probes(port: int) -> Manifest:
    """Probes on the health-only port. The kubelet has no client certificate, so this port is plain HTTP.

    The startup probe says that the half (or the master) is up, not that an engine serves: a trainer container starts
    only after it, and an engine is started only when the trainer has published weights. Time-outs are generous, because
    a long collective or a busy engine must not look like a death.
    """
    return {
        "startupProbe": _probe(port, period_s=1, timeout_s=5, failures=300),
        "livenessProbe": _probe(port, period_s=10, timeout_s=10, failures=6),
        "readinessProbe": _probe(port, period_s=5, timeout_s=5, failures=3),
    }


def _probe(port: int, *, period_s: int, timeout_s: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": names.HEALTH_PATH, "port": port, "scheme": "HTTP"},
        "periodSeconds": period_s,
        "timeoutSeconds": timeout_s,
        "failureThreshold": failures,
    }


def resources(wanted: Resources, shared_memory: str = "") -> Manifest:
    """Requests and limits; `shared_memory` is charged to this container, so it is added to its memory.

    The scheduler does not see memory-backed volumes, and the kernel charges their pages to whoever touches them first.
    """
    result: Manifest = {}
    for kind, asked in (("requests", wanted.requests), ("limits", wanted.limits)):
        amounts = {key: value for key, value in (("cpu", asked.cpu), ("memory", asked.memory)) if value is not None}
        if shared_memory and ("memory" in amounts or (kind == "requests" and wanted.limits.memory is None)):
            amounts["memory"] = quantity.add(amounts.get("memory", "0"), shared_memory)
        if amounts:
            result[kind] = amounts
    return result


def mount(volume: str, path: str, *, read_only: bool = False) -> Manifest:
    """A volume mount."""
    result: Manifest = {"name": volume, "mountPath": path}
    if read_only:
        result["readOnly"] = True
    return result


def memory_volume(size: str | None) -> Manifest:
    """/dev/shm of a pod; without a size it may take what the pod's memory limit, or else the node, allows."""
    return {"name": "shm", "emptyDir": {"medium": "Memory"} | ({"sizeLimit": size} if size else {})}


def pod_security() -> Manifest:
    """The pod's security context: no root, the runtime's seccomp profile; volumes belong to the group."""
    return {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "fsGroup": 1000,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def tolerations(*, accelerators: bool) -> list[Manifest]:
    """A lost node is given up after a minute; nodes with accelerators are usually tainted."""
    lost = [
        {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}
        for key in ("not-ready", "unreachable")
    ]
    return [*lost, {"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}] if accelerators else lost
