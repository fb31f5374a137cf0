"""Pod manifests as the operator renders them, read into `plan.Pod`. Pure.

Promise: a field is honoured, or it stands in a table below with the reason why it means nothing on one machine, or it
is refused by its name. Nothing is ignored in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from twinpod.api.quantity import QuantityError, to_bytes
from twinpod.errors import InputError
from twinpod.local.plan import Container, Mount, Pod, Probe, Volume, VolumeKind

ONE_MACHINE = "there is one machine to run on"
ONE_USER = "local mode runs everything as the user who called it, in this checkout's environment"

# Fields that mean nothing here, each with its reason.
MEANINGLESS_IN_POD: Mapping[str, str] = {
    "affinity": ONE_MACHINE,
    "nodeSelector": ONE_MACHINE,
    "tolerations": ONE_MACHINE,
    "topologySpreadConstraints": ONE_MACHINE,
    "schedulerName": ONE_MACHINE,
    "schedulingGates": ONE_MACHINE,
    "priorityClassName": ONE_MACHINE,
    "runtimeClassName": ONE_USER,
    "securityContext": ONE_USER,
    "resourceClaims": "processes see the accelerators of the machine",
    "imagePullSecrets": "images are not used: the processes run from this checkout's environment",
    "serviceAccountName": "there is no Kubernetes API to be granted",
    "automountServiceAccountToken": "there is no Kubernetes API to be granted",
    "enableServiceLinks": "there are no Services",
    "setHostnameAsFQDN": "names are resolved by a hosts file; the host keeps its own",
    "publishNotReadyAddresses": "the hosts file names every pod from the beginning",
}
MEANINGLESS_IN_CONTAINER: Mapping[str, str] = {
    "image": "images are not used: the processes run from this checkout's environment",
    "imagePullPolicy": "images are not used: the processes run from this checkout's environment",
    "resources": "processes share the machine as the system divides it",
    "securityContext": ONE_USER,
    "readinessProbe": "nothing routes traffic by readiness; the processes watch each other through etcd",
    "terminationMessagePolicy": "the end of the log is shown instead",
    "terminationMessagePath": "the end of the log is shown instead",
}
POD_SPEC = frozenset(
    {
        *("restartPolicy", "hostname", "subdomain", "volumes", "initContainers", "containers"),
        "terminationGracePeriodSeconds",
    }
)
CONTAINER = frozenset(
    {
        *("name", "command", "args", "env", "workingDir", "volumeMounts", "ports", "startupProbe", "livenessProbe"),
        "restartPolicy",
    }
)
PROBE = frozenset(
    {"httpGet", "tcpSocket", "initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold"}
)


def read_pod(manifest: Mapping[str, Any]) -> Pod:
    """The pod of one manifest; InputError names the first field that local mode does not honour."""
    spec, namespace = manifest["spec"], manifest["metadata"].get("namespace", "default")
    name = spec.get("hostname", manifest["metadata"]["name"])  # the name that does not change with the attempt
    where = f"Pod {name}: spec"
    _only(spec, POD_SPEC | MEANINGLESS_IN_POD.keys(), where)
    if (policy := spec.get("restartPolicy", "Always")) != "Never":
        raise _refused(f"{where}.restartPolicy", f"is {policy}; local mode honours Never")
    first = [
        (_container(node, manifest, f"{where}.initContainers[{index}]"), node.get("restartPolicy") == "Always")
        for index, node in enumerate(spec.get("initContainers", ()))
    ]
    return Pod(
        name=name,
        names=_names(name, namespace, spec),
        volumes=tuple(_volume(node, f"{where}.volumes[{index}]") for index, node in enumerate(spec.get("volumes", ()))),
        sidecars=tuple(container for container, always in first if always),
        steps=tuple(container for container, always in first if not always),
        containers=tuple(
            _container(node, manifest, f"{where}.containers[{index}]") for index, node in enumerate(spec["containers"])
        ),
        grace_s=float(spec.get("terminationGracePeriodSeconds", 30)),
    )


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Kubernetes' expansion: $(NAME) becomes the variable's value when it is known, $$(NAME) stays $(NAME)."""

    def replace(found: re.Match[str]) -> str:
        if found[0].startswith("$$"):
            return found[0][1:]
        return environment.get(found[1], found[0])

    return re.sub(r"\$?\$\(([A-Za-z_][A-Za-z0-9_]*)\)", replace, text)


def _names(name: str, namespace: str, spec: Mapping[str, Any]) -> tuple[str, ...]:
    if not (subdomain := spec.get("subdomain")):
        return (name,)
    in_namespace = f"{name}.{subdomain}.{namespace}"
    return (name, f"{name}.{subdomain}", in_namespace, f"{in_namespace}.svc", f"{in_namespace}.svc.cluster.local")


def _container(node: Mapping[str, Any], manifest: Mapping[str, Any], where: str) -> Container:
    _only(node, CONTAINER | MEANINGLESS_IN_CONTAINER.keys(), where)
    if not node.get("command"):
        raise _refused(f"{where}.command", "is missing, and the image that would say it is not used")
    environment: dict[str, str] = {}
    for index, entry in enumerate(node.get("env", ())):
        environment[entry["name"]] = _value(entry, manifest, environment, f"{where}.env[{index}]")
    return Container(
        name=node["name"],
        command=tuple(expand(str(word), environment) for word in (*node["command"], *node.get("args", ()))),
        environment=tuple(environment.items()),
        folder=node.get("workingDir", ""),
        mounts=tuple(
            _mount(entry, f"{where}.volumeMounts[{index}]") for index, entry in enumerate(node.get("volumeMounts", ()))
        ),
        ports=tuple(entry["containerPort"] for entry in node.get("ports", ())),
        startup=_probe(node, "startupProbe", where),
        liveness=_probe(node, "livenessProbe", where),
    )


def _value(entry: Mapping[str, Any], manifest: Mapping[str, Any], known: Mapping[str, str], where: str) -> str:
    _only(entry, frozenset({"name", "value", "valueFrom"}), where)
    if "valueFrom" not in entry:
        return expand(str(entry.get("value", "")), known)
    _only(entry["valueFrom"], frozenset({"fieldRef"}), f"{where}.valueFrom")
    field = entry["valueFrom"]["fieldRef"]["fieldPath"]
    metadata = manifest["metadata"]
    if field in ("metadata.name", "metadata.namespace"):
        return str(metadata.get(field.removeprefix("metadata."), "default"))
    if found := re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", field):
        return str(metadata.get(found[1], {}).get(found[2], ""))
    raise _refused(f"{where}.valueFrom.fieldRef.fieldPath", f"{field} is not honoured by local mode")


def _mount(node: Mapping[str, Any], where: str) -> Mount:
    _only(node, frozenset({"name", "mountPath", "subPath", "readOnly"}), where)
    return Mount(
        volume=node["name"],
        path=node["mountPath"],
        sub_path=node.get("subPath", ""),
        read_only=bool(node.get("readOnly")),
    )


def _volume(node: Mapping[str, Any], where: str) -> Volume:
    _only(node, frozenset({"name", "emptyDir", "configMap", "secret", "persistentVolumeClaim"}), where)
    name = node["name"]
    if (empty := node.get("emptyDir")) is not None:
        _only(empty, frozenset({"medium", "sizeLimit"}), f"{where}.emptyDir")
        size = _bytes(empty["sizeLimit"], f"{where}.emptyDir.sizeLimit") if "sizeLimit" in empty else 0
        kind = VolumeKind.MEMORY if empty.get("medium") == "Memory" else VolumeKind.FOLDER
        return Volume(name=name, kind=kind, source="", size=size)
    if "configMap" in node:
        _only(node["configMap"], frozenset({"name", "defaultMode"}), f"{where}.configMap")
        return Volume(name=name, kind=VolumeKind.CONFIG, source=node["configMap"]["name"], size=0)
    if "secret" in node:
        _only(node["secret"], frozenset({"secretName", "defaultMode"}), f"{where}.secret")
        return Volume(name=name, kind=VolumeKind.SECRET, source=node["secret"]["secretName"], size=0)
    if "persistentVolumeClaim" in node:
        _only(node["persistentVolumeClaim"], frozenset({"claimName", "readOnly"}), f"{where}.persistentVolumeClaim")
        return Volume(name=name, kind=VolumeKind.CLAIM, source=node["persistentVolumeClaim"]["claimName"], size=0)
    raise _refused(where, "has no source that local mode knows")


def _bytes(text: str | int, where: str) -> int:
    try:
        return to_bytes(str(text))
    except QuantityError as error:
        raise InputError(str(error), where=where) from error


def _probe(container: Mapping[str, Any], field: str, where: str) -> Probe | None:
    if (node := container.get(field)) is None:
        return None
    where = f"{where}.{field}"
    _only(node, PROBE, where)
    act = node.get("httpGet") or node.get("tcpSocket")
    if act is None:
        raise _refused(where, "asks in a way that local mode does not know; httpGet and tcpSocket are honoured")
    _only(act, frozenset({"path", "port", "scheme"}), f"{where}.{'httpGet' if 'httpGet' in node else 'tcpSocket'}")
    if act.get("scheme", "HTTP") != "HTTP":
        raise _refused(f"{where}.httpGet.scheme", f"is {act['scheme']}; local mode honours HTTP")
    return Probe(
        port=_port(act["port"], container.get("ports", ()), where),
        path=act.get("path", "/") if "httpGet" in node else "",
        initial_delay_s=float(node.get("initialDelaySeconds", 0)),
        period_s=float(node.get("periodSeconds", 10)),
        timeout_s=float(node.get("timeoutSeconds", 1)),
        failures=int(node.get("failureThreshold", 3)),
    )


def _port(port: int | str, ports: Sequence[Mapping[str, Any]], where: str) -> int:
    if isinstance(port, int):
        return port
    for entry in ports:
        if entry.get("name") == port:
            return int(entry["containerPort"])
    raise InputError(f"names the port {port!r}, which the container does not have", where=where)


def _only(node: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    for field in node:
        if field not in known:
            raise _refused(f"{where}.{field}", "is not honoured by local mode")


def _refused(where: str, what: str) -> InputError:
    return InputError(what, where=where, mend="take the field out of the manifest, or run the job on Kubernetes")
