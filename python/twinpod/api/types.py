"""The resource types, in one place to import from: `from twinpod.api.types import RLJob`."""

from __future__ import annotations

from twinpod.api.job import (
    AlgorithmSpec,
    Architecture,
    DatasetSpec,
    EntryPointSpec,
    FailurePolicy,
    JobSpec,
    JsonLinesSpec,
    ModelSpec,
    ReasoningGymSpec,
    RepeatSpec,
    RewardSpec,
    RLJob,
    RolloutSpec,
    SnapshotsVolume,
    StateVolume,
    StorageSpec,
    TokenizerSpec,
)
from twinpod.api.meta import Metadata
from twinpod.api.pods import HybridSpec, InferenceSpec, ResourceList, Resources, TrainerSpec
from twinpod.api.pools import RolloutPool, RolloutPoolSpec, Runtime, SandboxLimits, SandboxPool, SandboxPoolSpec
from twinpod.api.status import ConditionStatus, JobStatus, PoolStatus

Resource = RLJob | RolloutPool | SandboxPool
KINDS: dict[str, type[RLJob] | type[RolloutPool] | type[SandboxPool]] = {
    "RLJob": RLJob,
    "RolloutPool": RolloutPool,
    "SandboxPool": SandboxPool,
}

__all__ = [
    "KINDS",
    "AlgorithmSpec",
    "Architecture",
    "ConditionStatus",
    "DatasetSpec",
    "EntryPointSpec",
    "FailurePolicy",
    "HybridSpec",
    "InferenceSpec",
    "JobSpec",
    "JobStatus",
    "JsonLinesSpec",
    "Metadata",
    "ModelSpec",
    "PoolStatus",
    "RLJob",
    "ReasoningGymSpec",
    "RepeatSpec",
    "Resource",
    "ResourceList",
    "Resources",
    "RewardSpec",
    "RolloutPool",
    "RolloutPoolSpec",
    "RolloutSpec",
    "Runtime",
    "SandboxLimits",
    "SandboxPool",
    "SandboxPoolSpec",
    "SnapshotsVolume",
    "StateVolume",
    "StorageSpec",
    "TokenizerSpec",
    "TrainerSpec",
]
