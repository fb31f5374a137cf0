"""Object metadata, as much of it as a manifest may hold (also one that came back from a cluster)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, JsonValue

from twinpod.api import names
from twinpod.api.base import Part

ResourceName = Annotated[
    str,
    Field(strict=True, min_length=1, max_length=names.MAX_JOB_NAME, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$"),
]
"""Hostnames and a Service are named after it: a DNS label that begins with a letter, short enough for suffixes."""


class Metadata(Part):
    """`metadata` of a resource. What only a server writes is accepted and passed through."""

    name: ResourceName
    namespace: Annotated[
        str, Field(strict=True, min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    ] = "default"
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: tuple[str, ...] = ()
    uid: str | None = None
    resource_version: str | None = None
    generation: int | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    owner_references: tuple[JsonValue, ...] = ()
    managed_fields: tuple[JsonValue, ...] = ()
