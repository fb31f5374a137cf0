"""RolloutPool and SandboxPool: pods that serve a job without training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from twinpod.api.base import ImageName, ObjectName, Part, Positive, Quantity
from twinpod.api.meta import Metadata
from twinpod.api.patch import PodPatch
from twinpod.api.pods import InferenceSpec, KernelCache, ResourceList, engines_for
from twinpod.api.resource_rules import POOL_RULES, SANDBOX_RULES
from twinpod.api.rules import broken
from twinpod.api.status import PoolStatus

Replicas = Annotated[int, Field(strict=True, ge=0, le=4096)]


class RolloutPoolSpec(Part):
    """Inference-only pods that join a running job; may be scaled to 0 at any moment."""

    job: ObjectName
    """Name of the RLJob, in the same namespace; it need not exist yet."""
    replicas: Replicas = 1
    """Pods; changed at any time by kubectl scale, or by an autoscaler."""
    accelerators: Annotated[int, Field(strict=True, ge=0, le=64)] = 0
    """Accelerators a pod; 0 runs on the CPU."""
    sharing: Literal["Claim", "WholeNode"] = "Claim"
    """How a pod gets its accelerators: by a DRA claim, or as `nvidia.com/gpu` of the device plug-in."""
    device_class: ObjectName = "gpu.nvidia.com"
    """Device class of the claim."""
    shared_memory: Quantity | None = Field(default=None, json_schema_extra={"derived": "that of the job's hybrid pods"})
    """Size of the pod's /dev/shm: two slots of the model's weights."""
    kernel_cache: KernelCache = KernelCache()
    priority_class_name: ObjectName | None = None
    """Priority class of the pool's pods."""
    pod_patch: PodPatch | None = None
    """Strategic merge patch of the pods, for what no field covers: `{metadata: ..., spec: ...}`."""
    inference: InferenceSpec = InferenceSpec()

    @model_validator(mode="after")
    def _derive(self) -> Self:
        object.__setattr__(self, "inference", engines_for(self.inference, self.accelerators))
        return self


class RolloutPool(Part):
    """Inference-only pods that join a training run while it runs."""

    api_version: Literal["twinpod.dev/v1alpha1"]
    kind: Literal["RolloutPool"]
    metadata: Metadata
    spec: RolloutPoolSpec
    status: PoolStatus | None = None

    @model_validator(mode="after")
    def _obey_rules(self) -> Self:
        if problems := broken(POOL_RULES, self.as_manifest()):
            raise PydanticCustomError("rules", "{lines}", {"lines": "\n".join(problems), "problems": problems})
        return self


class Runtime(Part):
    """One language's environment, by its image."""

    name: ObjectName
    """The name by which rewards ask for it."""
    image: ImageName
    """The image that its programs run in."""


class SandboxLimits(Part):
    """What one execution may use."""

    cpu: Quantity = "1"
    """Cores of one program."""
    memory: Quantity = "512Mi"
    """Bytes that one program may use."""
    processes: Positive = 64
    """Processes and threads at once."""
    seconds: Annotated[int, Field(strict=True, ge=1, le=3600)] = 10
    """Seconds of wall time."""
    output_bytes: Positive = 65_536
    """Bytes that are kept of what a program prints."""
    disk: Quantity = "64Mi"
    """Size of the tmpfs that takes everything a program writes."""


class SandboxPoolSpec(Part):
    """The code execution service: runtimes, limits, replicas."""

    replicas: Replicas = 1
    """Pods of the service."""
    runtimes: Annotated[
        tuple[Runtime, ...],
        Field(
            min_length=1,
            max_length=64,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ]
    """The environments that programs run in, each with a name of its own."""
    concurrency: Positive = 16
    """Programs that run at once in one pod."""
    limits: SandboxLimits = SandboxLimits()
    resources: ResourceList = ResourceList()


class SandboxPool(Part):
    """A service that runs model-written code for rewards."""

    api_version: Literal["twinpod.dev/v1alpha1"]
    kind: Literal["SandboxPool"]
    metadata: Metadata
    spec: SandboxPoolSpec
    status: PoolStatus | None = None

    @model_validator(mode="after")
    def _obey_rules(self) -> Self:
        if problems := broken(SANDBOX_RULES, self.as_manifest()):
            raise PydanticCustomError("rules", "{lines}", {"lines": "\n".join(problems), "problems": problems})
        return self
