"""Statuses, as the operator writes them. Numbers with a fraction are strings, as everywhere in the API."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from twinpod.api.base import Natural, Part

Stamp = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]


class ConditionStatus(Part):
    """One condition, as in `metav1.Condition`."""

    type: Annotated[str, Field(max_length=316)]
    """What the condition is about."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(max_length=1024)]
    """Why, in one CamelCase word; stable, for alerts."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Why, for a person."""
    last_transition_time: Stamp
    """When its status last changed."""
    observed_generation: Natural = 0
    """Generation of the resource that it was computed from."""


Conditions = Annotated[
    tuple[ConditionStatus, ...],
    Field(
        max_length=32,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
]


class JobStatus(Part):
    """How a job is going."""

    conditions: Conditions = ()
    """How the job is doing: Accepted, QuotaReserved, PodsScheduled, WorkersReady, WeightsSynced, Ready and others."""
    observed_generation: Natural = 0
    """Generation of the resource that the status was computed from."""
    iteration: Natural = 0
    """Iterations that are committed."""
    reward: Annotated[str, Field(max_length=32)] = ""
    """Mean reward of the newest committed iteration."""
    phase: Annotated[str, Field(max_length=64)] = ""
    """What the master does now, such as rollout or train; Unknown while etcd does not answer."""
    pods: Annotated[str, Field(max_length=32)] = ""
    """Ready pods of wanted pods, as 2/3."""
    accelerators: Natural = 0
    """Accelerators that all hybrid pods ask for together."""
    sharing: Annotated[str, Field(max_length=32)] = ""
    """How accelerators are shared: Claim, WholeNode or CPU."""
    weight_version: Natural = 0
    """Newest committed version of the weights."""
    restarts: Natural = 0
    """Restarts that count against failurePolicy.maxRestarts: of all pods, and of a pod's inference half alone."""
    attempt: Natural = 0
    """Number of the present set of pods; every set has new names."""
    application_faults: Natural = 0
    """Part of `restarts` that ended attempts have used."""
    infrastructure_faults: Natural = 0
    """Attempts that a lost node, an eviction or a deleted pod ended."""
    scheduling_retries: Natural = 0
    """Attempts that were taken back because not all pods could be made and found a node in time."""
    preemptions: Natural = 0
    """Attempts that a queue took back; they cost nothing."""
    complete_attempt: Natural = 0
    """Newest attempt whose pods have all existed at once; after that a pod that is missing is lost."""
    last_fault: Annotated[str, Field(max_length=2048)] = ""
    """Why the newest attempt before this one ended, as `Reason: message`."""
    not_before: Stamp | None = None
    """When the present attempt's pods may be created."""
    placing_since: Stamp | None = None
    """Since when the pods of this attempt may be scheduled."""
    progress_time: Stamp | None = None
    """When iteration, reward, phase and weight version were copied from what the master tells."""
    start_time: Stamp | None = None
    """When the job was first started, or started again after it was suspended."""
    completion_time: Stamp | None = None
    """When the job succeeded or failed."""


class PoolStatus(Part):
    """How a pool is doing."""

    conditions: Conditions = ()
    """How the pool is doing; Ready gives the reason when it is not."""
    observed_generation: Natural = 0
    """Generation of the resource that the status was computed from."""
    replicas: Natural = 0
    """Pods that exist, those that drain included."""
    ready_replicas: Natural = 0
    """Pods that are ready."""
    restarts: Natural = 0
    """Pods that were replaced because they ended."""
    weight_version: Natural = 0
    """Version of the weights that its job has committed; 0 while no pod is ready."""
    selector: Annotated[str, Field(max_length=1024)] = ""
    """Label selector of the pods, for autoscalers."""
