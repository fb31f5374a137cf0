"""Statuses, as the operator writes them. Numbers with a fraction are strings, as everywhere in the API."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from twinpod.api.base import Natural, Part

Stamp = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]


class ConditionStatus(Part):
    """One condition, as in `metav1.Condition`."""

    type: Annotated[str, Field(max_length=316)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(max_length=1024)]
    message: Annotated[str, Field(max_length=32768)] = ""
    last_transition_time: Stamp
    observed_generation: Natural = 0


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
    observed_generation: Natural = 0
    iteration: Natural = 0
    """Iterations that are committed."""
    reward: Annotated[str, Field(max_length=32)] = ""
    """Mean reward of the newest committed iteration."""
    phase: Annotated[str, Field(max_length=64)] = ""
    pods: Annotated[str, Field(max_length=32)] = ""
    """Ready pods of wanted pods, as 2/3."""
    accelerators: Natural = 0
    sharing: Annotated[str, Field(max_length=32)] = ""
    """How accelerators are shared: Claim, WholeNode or CPU."""
    weight_version: Natural = 0
    restarts: Natural = 0
    attempt: Natural = 0
    start_time: Stamp | None = None
    completion_time: Stamp | None = None


class PoolStatus(Part):
    """How a pool is doing."""

    conditions: Conditions = ()
    observed_generation: Natural = 0
    replicas: Natural = 0
    ready_replicas: Natural = 0
    weight_version: Natural = 0
    selector: Annotated[str, Field(max_length=1024)] = ""
    """Label selector of the pods, for autoscalers."""
