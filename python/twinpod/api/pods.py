"""The pods of a job as a person describes them: replicas, accelerators, trainer and engine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from twinpod.api.base import FilledText, Flag, ImageName, ObjectName, Part, Positive, Quantity, Ranks, derived
from twinpod.api.patch import PodPatch
from twinpod.records.life import LifeCycle


class ResourceList(Part):
    """Quantities of a container."""

    cpu: Quantity | None = None
    """Cores, as a quantity such as 500m or 2; not set when left out."""
    memory: Quantity | None = None
    """Bytes, as a quantity such as 512Mi; not set when left out."""


class Resources(Part):
    """Requests and limits of a container; shared memory is added by Twinpod."""

    requests: ResourceList = ResourceList()
    limits: ResourceList = ResourceList()


class TrainerSpec(Part):
    """The trainer container: Megatron ranks."""

    image: ImageName | None = None
    """The platform's image when left out."""
    tensor_parallel: Ranks = 1
    """Ranks that share each layer (Megatron's tensor parallelism)."""
    pipeline_parallel: Ranks = 1
    """Ranks that the layers are divided over (Megatron's pipeline parallelism)."""
    data_parallel: Ranks = 1
    """Data-parallel ranks within a pod; replicas multiply it."""
    offload: Flag = False
    """Move the trainer's state out of the accelerators' memory (without accelerators: to the arena) during rollouts."""
    resources: Resources = Resources()

    @property
    def ranks(self) -> int:
        """Processes a pod."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel


class InferenceSpec(Part):
    """The inference container: an SGLang server."""

    image: ImageName | None = None
    """The platform's image when left out."""
    tensor_parallel: Ranks = 1
    """Ranks of SGLang that share each layer."""
    kv_tokens: Positive = 65_536
    """Tokens of the key-value cache."""
    max_running: Positive = derived("rollout.groupsInFlight * algorithm.groupSize, at most 512")
    """Most sequences that decode at once."""
    attention_backend: FilledText | None = None
    """SGLang's attention backend; the platform's choice when left out."""
    resources: Resources = Resources()


class HybridSpec(Part):
    """The hybrid pods: trainer and engine share the pod's accelerators."""

    replicas: Annotated[int, Field(strict=True, ge=1, le=1024)] = 1
    """Hybrid pods; each holds a whole copy of the model, and they train data-parallel."""
    accelerators: Annotated[int, Field(strict=True, ge=0, le=64)] = 0
    """Accelerators a pod; 0 runs on the CPU."""
    sharing: Literal["Claim", "WholeNode"] = "Claim"
    """How both containers get the accelerators: one DRA claim a pod, or all devices of a node."""
    device_class: ObjectName = "gpu.nvidia.com"
    """Device class of the claim."""
    runtime_class: ObjectName | None = None
    """Runtime class that lets the inference container see a node's devices; for sharing WholeNode."""
    shared_memory: Quantity = "1Gi"
    """Size of the pod's /dev/shm: two slots of the model's weights, and room for the ranks."""
    life_cycle: LifeCycle = LifeCycle.RESTART
    """What becomes of the engine when a rollout phase ends."""
    pod_patch: PodPatch | None = None
    """Strategic merge patch of the pods, for what no field covers: `{metadata: ..., spec: ...}`."""
    trainer: TrainerSpec = TrainerSpec()
    inference: InferenceSpec = InferenceSpec()

    @property
    def world_size(self) -> int:
        """Trainer ranks of all pods."""
        return self.replicas * self.trainer.ranks
