"""The nouns of sizing. Sizes are bytes of one accelerator (`gpu`) or of a whole pod (`host`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twinpod.records.model_shape import ModelShape

GIB = 2**30
Recompute = Literal["None", "Selective", "Full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """A device by the name that `--accelerator` takes."""

    name: str
    sheet: str  # memory as the vendor's data sheet says it
    usable: int  # bytes that a program can have of it, all processes together


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What of a job decides its memory."""

    shape: ModelShape
    item: int  # bytes of a weight: 4 (float32) or 2 (bfloat16)
    replicas: int  # hybrid pods
    accelerators: int  # a pod; 0: everything is on the host
    tensor: int
    pipeline: int
    data: int  # data-parallel trainer ranks in a pod
    micro_tokens: int  # padded tokens of a micro-batch, as the job asks
    context: int  # longest prompt + answer, in tokens
    samples: int  # of an iteration
    recompute: Recompute
    sequence_parallel: bool
    offload: bool  # the trainer's state leaves the accelerators (always with accelerators)
    local_layers: bool  # Megatron's own layers instead of Transformer Engine's
    engine_tensor: int
    engine_data: int  # engines of a pod
    kv_tokens: int  # of one engine; 0: it takes what is left of its share
    memory_fraction: float  # of an accelerator, the engine's weights and cache together
    max_running: int  # in all engines of a pod

    @property
    def ranks(self) -> int:
        """Trainer ranks of a pod."""
        return self.tensor * self.pipeline * self.data

    @property
    def engine_ranks(self) -> int:
        """Ranks of all engines of a pod."""
        return self.engine_tensor * self.engine_data

    @property
    def copies(self) -> int:
        """Data-parallel copies of the model in all pods."""
        return self.data * self.replicas

    @property
    def on_cpu(self) -> bool:
        """No accelerators."""
        return self.accelerators == 0

    @property
    def longest_micro_batch(self) -> int:
        """Padded tokens of the largest micro-batch: a sequence longer than the limit gets one of its own."""
        return max(self.micro_tokens, self.context)


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """One thing that takes memory."""

    name: str
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What is held while a phase lasts, at its highest point: by one accelerator, and by the memory of one pod."""

    phase: str
    gpu: tuple[Amount, ...]
    host: tuple[Amount, ...]

    @property
    def host_bytes(self) -> int:
        """All of a pod's memory, /dev/shm with it."""
        return sum(amount.nbytes for amount in self.host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing to change in the manifest; changes of a list belong together, in their order."""

    field: str
    value: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The answer of `twinpod fit` about one job."""

    parameters: int  # of the whole model
    accelerator: Accelerator | None
    holdings: tuple[Holding, ...]
    shared_memory: int  # bytes of /dev/shm that a pod needs
    shared_memory_given: int  # 0: derived
    largest_micro_batch: int  # tokens; 0: not even the weights fit, or no accelerators
    kv_token_bytes: int  # of one token on one rank of the engine
    kv_tokens: int  # that one engine holds at once
    sequences: int  # of full length that the engines of a pod hold at once
    fits: bool
    problems: tuple[str, ...]
    changes: tuple[Change, ...]
