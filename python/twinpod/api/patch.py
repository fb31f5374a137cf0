"""podPatch: what a person may merge into a pod beside the fields of the spec. A closed list.

The patch is for scheduling, more volumes, more environment, more sidecars. What Twinpod owns, and whatever would raise
the pod's privileges, has no field here: `REFUSED` gives the words for those who try. `twinpod_operator.pod_patch`
merges; what stands in a free-form part is checked by the API server when the operator proves the pod with a dry run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, JsonValue, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from twinpod.api import names
from twinpod.api.base import FilledText, Flag, ObjectName, Part, Quantity, Text

LabelKey = Annotated[str, Field(strict=True, max_length=317)]
Free = Annotated[dict[str, JsonValue], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]
"""A part as the Pod API has it; the API server checks it."""
Map = Annotated[dict[LabelKey, Text], Field(max_length=64)]
_PRIVILEGE = "would raise the pod's privileges"
_VOLUMES = ("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret")
_OWN_VOLUMES = ("job", "tls", "etcd-tls", "run", "shm", "state", "snapshots", "source", "pool")
_OWN_KEYS = (names.GROUP, "kueue.x-k8s.io", "app.kubernetes.io")
_OWN_FOLDERS = ("/etc/twinpod", "/run/twinpod", "/var/lib/twinpod", "/dev", "/proc", "/sys", names.TEMPORARY_FOLDER)
RESERVED_ENVIRONMENT = r"^(TWINPOD_.*|CUDA_VISIBLE_DEVICES|NVIDIA_VISIBLE_DEVICES|HOME)$"
_OWN_RESOURCES = ("cpu", "memory", "nvidia.com/gpu")
CONTAINERS = (names.CONTAINER_MASTER, names.CONTAINER_TRAINER, names.CONTAINER_INFERENCE)


class PatchMetadata(Part):
    """Labels and annotations to add; those of Twinpod and of queueing systems are set by the job."""

    labels: Map = Field(default_factory=dict)
    annotations: Map = Field(default_factory=dict)


class PatchVariable(Part):
    """An environment variable; names that Twinpod sets are refused."""

    name: Annotated[str, Field(strict=True, min_length=1, max_length=256)]
    value: Text | None = None
    value_from: Free | None = None


class PatchMount(Part):
    """A mount of a volume that the patch adds; not below a folder of Twinpod."""

    name: ObjectName
    mount_path: FilledText
    sub_path: Text | None = None
    read_only: Flag | None = None


class PatchResources(Part):
    """Extended resources, such as those of a network device; CPU, memory and accelerators have fields of their own."""

    requests: Annotated[dict[LabelKey, Quantity], Field(max_length=16)] = Field(default_factory=dict)
    limits: Annotated[dict[LabelKey, Quantity], Field(max_length=16)] = Field(default_factory=dict)


class PatchContainer(Part):
    """What to add to one of the pod's own containers, found by its name."""

    refused: ClassVar[Mapping[str, str]] = {
        "securityContext": _PRIVILEGE,
        "image": "has a field of its own: trainer.image, inference.image",
        **dict.fromkeys(("command", "args", "ports"), "is Twinpod's contract with its processes"),
        **dict.fromkeys(("livenessProbe", "readinessProbe", "startupProbe"), "is Twinpod's own"),
    }
    name: Annotated[str, Field(strict=True, max_length=63, json_schema_extra={"enum": list(CONTAINERS)})]
    env: Annotated[tuple[PatchVariable, ...], Field(max_length=64)] = ()
    env_from: Annotated[tuple[Free, ...], Field(max_length=16)] = ()
    volume_mounts: Annotated[tuple[PatchMount, ...], Field(max_length=32)] = ()
    resources: PatchResources = PatchResources()


class PatchSpec(Part):
    """Fields of the pod's spec that may be set; entries of lists are added to ours."""

    refused: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("hostNetwork", "hostPID", "hostIPC", "hostUsers", "shareProcessNamespace"), _PRIVILEGE),
        **dict.fromkeys(("serviceAccountName", "serviceAccount", "automountServiceAccountToken"), _PRIVILEGE),
        "securityContext": _PRIVILEGE,
        "restartPolicy": "is Never: the operator owns retries",
        "nodeName": "would go around the scheduler; use nodeSelector",
        "schedulingGates": "is how jobs take turns; the operator owns it",
        "priorityClassName": "has a field of its own: spec.priorityClassName",
        "runtimeClassName": "has a field of its own: hybrid.runtimeClass",
        "terminationGracePeriodSeconds": "is the operator's",
        **dict.fromkeys(("hostname", "subdomain"), "is how the pods of a job find each other"),
    }
    node_selector: Map = Field(default_factory=dict)
    affinity: Free | None = None
    tolerations: Annotated[tuple[Free, ...], Field(max_length=32)] = ()
    topology_spread_constraints: Annotated[tuple[Free, ...], Field(max_length=16)] = ()
    scheduler_name: ObjectName | None = None
    image_pull_secrets: Annotated[tuple[Free, ...], Field(max_length=16)] = ()
    dns_config: Free | None = None
    host_aliases: Annotated[tuple[Free, ...], Field(max_length=32)] = ()
    resource_claims: Annotated[tuple[Free, ...], Field(max_length=16)] = ()
    volumes: Annotated[tuple[Free, ...], Field(max_length=32)] = ()
    """More volumes, of the kinds that Pod Security `restricted` allows."""
    init_containers: Annotated[tuple[Free, ...], Field(max_length=16)] = ()
    """More init containers and sidecars; they run before ours, and with our security context."""
    containers: Annotated[tuple[PatchContainer, ...], Field(max_length=3)] = ()


class PodPatch(Part):
    """Strategic merge patch of a pod: `{metadata: ..., spec: ...}`."""

    metadata: PatchMetadata = PatchMetadata()
    spec: PatchSpec = PatchSpec()

    @model_validator(mode="after")
    def _stay_out_of_ours(self) -> Self:
        if problem := next(_problems(self), None):
            raise PydanticCustomError("patch", "{problem}", {"problem": problem})
        return self


def _problems(patch: PodPatch) -> Iterator[str]:
    """What the schema cannot say: entries that would replace ours or raise privileges."""
    for kind, keys in (("labels", patch.metadata.labels), ("annotations", patch.metadata.annotations)):
        for key in keys:
            if any(key.split("/")[0].endswith(own) for own in _OWN_KEYS if "/" in key):
                yield f'metadata.{kind} "{key}" cannot be patched: it is set by the job'
    for volume in patch.spec.volumes:
        yield from _volume_problems(volume)
    for claim in patch.spec.resource_claims:
        if claim.get("name") == names.DEVICE_CLAIM:
            yield f'spec.resourceClaims "{names.DEVICE_CLAIM}" cannot be patched: it holds the accelerators'
    for container in patch.spec.init_containers:
        yield from _sidecar_problems(container)
    for own in patch.spec.containers:
        yield from _container_problems(own)


def _volume_problems(volume: Mapping[str, Any]) -> Iterator[str]:
    name, where = volume.get("name"), "spec.volumes"
    if not isinstance(name, str) or not name:
        yield f"{where}: each entry needs a name"
    elif name in _OWN_VOLUMES or name.startswith("tmp-"):
        yield f'{where} "{name}" cannot be patched: Twinpod has a volume of this name'
    for kind in volume.keys() - {"name"}:
        if kind not in _VOLUMES:
            yield f'{where} "{name}" cannot be of kind {kind}: it {_PRIVILEGE}; use one of {", ".join(_VOLUMES)}'
    sources = (volume.get("projected") or {}).get("sources", ()) if isinstance(volume.get("projected"), dict) else ()
    if any(isinstance(source, dict) and "serviceAccountToken" in source for source in sources):
        yield f'{where} "{name}" cannot hold a service account token: it {_PRIVILEGE}'


def _sidecar_problems(container: Mapping[str, Any]) -> Iterator[str]:
    name = container.get("name")
    if not isinstance(name, str) or not name:
        yield "spec.initContainers: each entry needs a name"
    elif name in CONTAINERS:
        yield f'spec.initContainers "{name}" cannot be patched here; name it below containers'
    if "securityContext" in container:
        yield f'spec.initContainers "{name}" cannot have a securityContext: it {_PRIVILEGE}; ours is set'


def _container_problems(own: PatchContainer) -> Iterator[str]:
    where = f'spec.containers "{own.name}"'
    for variable in own.env:
        if re.match(RESERVED_ENVIRONMENT, variable.name):
            yield f"{where}: env {variable.name} cannot be patched: Twinpod sets it"
    for mounted in own.volume_mounts:
        path = mounted.mount_path
        if any(path == folder or path.startswith(f"{folder}/") or path == "/" for folder in _OWN_FOLDERS):
            yield f"{where}: nothing can be mounted at {path}: the folder is Twinpod's or the system's"
    for kind, amounts in (("requests", own.resources.requests), ("limits", own.resources.limits)):
        for key in amounts:
            if key in _OWN_RESOURCES:
                yield f"{where}: resources.{kind} {key} cannot be patched: it has a field of its own"
