"""The pods of a job as a person describes them: replicas, accelerators, trainer and engine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from twinpod.api.base import (
    Decimal,
    FilledText,
    Flag,
    ImageName,
    ObjectName,
    Part,
    Positive,
    Quantity,
    Ranks,
    Text,
    derived,
)
from twinpod.api.patch import PodPatch
from twinpod.records.life import LifeCycle

CPU_KV_TOKENS = 65_536  # of an engine without accelerators whose kvTokens were left out
Recompute = Literal["None", "Selective", "Full"]


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


class Variable(Part):
    """An environment variable of a container."""

    name: Annotated[str, Field(strict=True, min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name, such as NCCL_DEBUG; those that Twinpod itself sets to run cannot be set."""
    value: Text
    """Value, as text."""


Variables = Annotated[
    tuple[Variable, ...],
    Field(
        max_length=64,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    ),
]


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
    sequence_parallel: Flag = False
    """Divide the activations between attention and MLP by position over the tensorParallel ranks: less memory, the same
    communication."""
    recompute: Recompute = "None"
    """Activations that are made again in the backward pass instead of kept: None, those of the MLPs and the attention's
    scores (Selective), or all but each layer's input (Full: least memory, about a third more work)."""
    offload: Flag = False
    """Move the trainer's state out of the accelerators' memory (without accelerators: to the arena) during rollouts."""
    layer_spec: Literal["TransformerEngine", "Local"] | None = Field(
        default=None, json_schema_extra={"derived": "TransformerEngine with accelerators, Local without"}
    )
    """Whose layers Megatron builds the model from: Transformer Engine's (fast, GPUs only) or its own in plain torch."""
    env: Variables = ()
    """Environment variables of the trainer container, for NCCL, torch and Megatron (NCCL_IB_HCA, NCCL_DEBUG)."""
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
    data_parallel: Ranks = derived("accelerators / tensorParallel, 1 without accelerators")
    """Engines in a pod, each with tensorParallel accelerators of its own and a whole copy of the weights."""
    kv_tokens: Positive | None = Field(
        default=None,
        json_schema_extra={"derived": "65536 without accelerators, else what SGLang has room for in memoryFraction"},
    )
    """Tokens of each engine's key-value cache."""
    memory_fraction: Decimal = "0.8"
    """Share of an accelerator's free memory for weights and key-value cache together, above 0 and below 1."""
    max_running: Positive = derived("rollout.groupsInFlight * algorithm.groupSize, at most 512")
    """Most sequences that decode at once, in all engines of a pod together."""
    attention_backend: FilledText | None = None
    """SGLang's attention backend; the platform's choice when left out."""
    env: Variables = ()
    """Environment variables of the inference container, for SGLang and NCCL."""
    resources: Resources = Resources()


InterfaceName = Annotated[
    str, Field(strict=True, min_length=1, max_length=256, pattern=r"^[A-Za-z0-9_.:-]+(,[A-Za-z0-9_.:-]+)*$")
]
"""A network interface such as eth0, or several with commas between them."""


class NetworkSpec(Part):
    """The network that the trainer's ranks meet on."""

    interface: InterfaceName | None = None
    """Interface that gloo and NCCL meet on (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME); their choice when left out."""


class HandOver(Part):
    """How accelerators change hands: each side looks at the device before it takes the memory."""

    residue: Quantity = "6Gi"
    """Memory of a device that the resting side may still hold: CUDA contexts, communication buffers, CUDA graphs."""
    deadline_seconds: Annotated[int, Field(strict=True, ge=1, le=3600)] = 60
    """Seconds that the side which begins waits for the other's memory, before it refuses and says both numbers."""


class KernelCache(Part):
    """Where compiled kernels are kept (Triton, inductor, FlashInfer): compiling them takes minutes."""

    existing_claim: ObjectName | None = None
    """A claim (ReadWriteMany) in the namespace, which jobs may share; a folder that goes with the pod when left out."""


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
    shared_memory: Quantity | None = Field(
        default=None,
        json_schema_extra={
            "derived": "by model.config; with a model folder, which the operator cannot read, what the pod may take"
        },
    )
    """Size of the pod's /dev/shm: two slots of the model's weights, and room for the ranks (`twinpod fit` tells it)."""
    life_cycle: LifeCycle = LifeCycle.RESTART
    """What becomes of the engine when a rollout phase ends."""
    hand_over: HandOver = HandOver()
    network: NetworkSpec = NetworkSpec()
    kernel_cache: KernelCache = KernelCache()
    pod_patch: PodPatch | None = None
    """Strategic merge patch of the pods, for what no field covers: `{metadata: ..., spec: ...}`."""
    trainer: TrainerSpec = TrainerSpec()
    inference: InferenceSpec = InferenceSpec()

    @property
    def world_size(self) -> int:
        """Trainer ranks of all pods."""
        return self.replicas * self.trainer.ranks


def engines_for(engine: InferenceSpec, accelerators: int) -> InferenceSpec:
    """The engine's fields that follow from the accelerators of its pod, where they were left out."""
    missing: dict[str, object] = {}
    if not engine.data_parallel:
        missing["data_parallel"] = max(1, accelerators // engine.tensor_parallel)
    if engine.kv_tokens is None and not accelerators:
        missing["kv_tokens"] = CPU_KV_TOKENS
    return engine.model_copy(update=missing) if missing else engine
