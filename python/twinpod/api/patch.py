"""podPatch: what a person may merge into a pod beside the fields of the spec. A closed list.

The patch is for scheduling, more volumes, more environment, more sidecars. What Twinpod owns, and whatever would raise
the pod's privileges, has no field here: `REFUSED` gives the words for those who try. `twinpod_operator.pod_patch`
merges; what stands in a free-form part is checked by the API server when the operator proves the pod with a dry run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Self

from pydantic import Field, JsonValue, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from twinpod.api import names
from twinpod.api.base import FilledText, Flag, ObjectName, Part, Quantity, Text

LabelKey = Annotated[str, Field(strict=True, max_length=317)]
Free = Annotated[dict[str, JsonValue], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]
"""A part as the Pod API has it; the API server checks it."""
Map = Annotated[dict[LabelKey, Text], Field(max_length=64)]
PRIVILEGE = "would raise the pod's privileges"
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


class PatchVolume(Part):
    """A volume of one of the kinds that Pod Security `restricted` allows; its source is as the Pod API has it."""

    refused: ClassVar[Mapping[str, str]] = {"hostPath": PRIVILEGE}
    name: ObjectName
    config_map: Free | None = None
    csi: Free | None = None
    downward_api: Free | None = Field(default=None, alias="downwardAPI")
    empty_dir: Free | None = None
    ephemeral: Free | None = None
    persistent_volume_claim: Free | None = None
    projected: Free | None = None
    secret: Free | None = None


class PatchContainer(Part):
    """What to add to one of the pod's own containers, found by its name."""

    refused: ClassVar[Mapping[str, str]] = {
        "securityContext": PRIVILEGE,
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
        **dict.fromkeys(("hostNetwork", "hostPID", "hostIPC", "hostUsers", "shareProcessNamespace"), PRIVILEGE),
        **dict.fromkeys(("serviceAccountName", "serviceAccount", "automountServiceAccountToken"), PRIVILEGE),
        "securityContext": PRIVILEGE,
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
    volumes: Annotated[tuple[PatchVolume, ...], Field(max_length=32)] = ()
    """More volumes."""
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
    """What neither the schema nor a rule can say: entries of free-form parts that replace ours or raise privileges."""
    for claim in patch.spec.resource_claims:
        if claim.get("name") == names.DEVICE_CLAIM:
            yield f'spec.resourceClaims "{names.DEVICE_CLAIM}" cannot be patched: it holds the accelerators'
    for volume in patch.spec.volumes:
        sources = (volume.projected or {}).get("sources")
        tokens = [source for source in sources if isinstance(source, dict)] if isinstance(sources, list) else []
        if any("serviceAccountToken" in source for source in tokens):
            yield f'spec.volumes "{volume.name}" cannot hold a service account token: it {PRIVILEGE}'
    for container in patch.spec.init_containers:
        name = container.get("name")
        if not isinstance(name, str) or not name:
            yield "spec.initContainers: each entry needs a name"
        elif name in CONTAINERS:
            yield f'spec.initContainers "{name}" cannot be patched here; name it below containers'
        if "securityContext" in container:
            yield f'spec.initContainers "{name}" cannot have a securityContext: it {PRIVILEGE}; ours is set'
