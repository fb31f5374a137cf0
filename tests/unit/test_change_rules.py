"""Every field of a spec is changed at any time, at a known time, or never; the docs say which."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinpod.api import change_rules as rules
from twinpod.api.types import JobSpec, RolloutPoolSpec

DOCS = Path(__file__).resolve().parents[2] / "docs" / "sharing-a-cluster.md"
JOB = {*rules.FREE_JOB_FIELDS, *rules.SUSPENDED_JOB_FIELDS, *rules.FIXED_JOB_FIELDS}
POOL = {*rules.FREE_POOL_FIELDS, *rules.EMPTY_POOL_FIELDS, *rules.FIXED_POOL_FIELDS}


def test_every_field_of_a_job_has_its_time() -> None:
    fields = {str(field.alias) for field in JobSpec.model_fields.values()} - {"storage"}
    parts = {f"storage.{field.alias}" for field in JobSpec.model_fields["storage"].annotation.model_fields.values()}  # type: ignore[union-attr]
    assert fields | parts == JOB


def test_every_field_of_a_pool_has_its_time() -> None:
    assert {str(field.alias) for field in RolloutPoolSpec.model_fields.values()} == POOL


@pytest.mark.parametrize("field", sorted(JOB | set(rules.FREE_POOL_FIELDS) | set(rules.FIXED_POOL_FIELDS)))
def test_the_docs_name_the_field(field: str) -> None:
    assert f"`{field}`" in DOCS.read_text(encoding="utf-8")
