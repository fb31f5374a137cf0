"""Manifests in the documentation are what they claim to be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from twinpod.api.load import check
from twinpod.api.types import RLJob, RolloutPool
from twinpod_operator.render import Manifest, Platform, render_job
from twinpod_operator.render_pool import render_pool

TOP = Path(__file__).resolve().parents[2]
PAGES = (TOP / "README.md", *sorted((TOP / "docs").rglob("*.md")))
PLATFORM = Platform(master_image="m:1", trainer_image="t:1", inference_image="i:1", etcd=("etcd:2379",))
BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def ours(page: Path) -> list[dict[str, Any]]:
    """Every whole resource of Twinpod that a page shows."""
    shown = [document for text in BLOCK.findall(page.read_text()) for document in yaml.safe_load_all(text)]
    return [document for document in shown if document and document.get("apiVersion", "").startswith("twinpod.dev/")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_resource_that_a_page_shows_is_valid(page: Path) -> None:
    for document in ours(page):
        assert check(document).metadata.name == document["metadata"]["name"]


def seen(pod: Manifest) -> dict[str, str]:
    """Claim that each container of ours has at /files."""
    spec = pod["spec"]
    claims = {one["name"]: one["persistentVolumeClaim"] for one in spec["volumes"] if "persistentVolumeClaim" in one}
    return {
        container["name"]: claims[mount["name"]]["claimName"]
        for container in (*spec.get("initContainers", ()), *spec["containers"])
        for mount in container["volumeMounts"]
        if mount["mountPath"] == "/files" and mount["readOnly"]
    }


def test_the_recipe_for_files_of_one_s_own_brings_them_to_everyone_who_reads_them() -> None:
    job, pool = (check(document) for document in ours(TOP / "docs/sharing-a-cluster.md"))
    assert isinstance(job, RLJob)
    assert isinstance(pool, RolloutPool)
    manifests = render_job(job, platform=PLATFORM, uid="u", attempt=1)
    manifests += render_pool(pool, job, platform=PLATFORM, job_uid="u", pool_uid="p")
    found = [seen(manifest) for manifest in manifests if manifest["kind"] == "Pod"]
    assert found == [
        {"master": "my-files"},
        {"inference": "my-files", "trainer": "my-files"},
        {"inference": "my-files"},
    ]
    assert job.spec.model.folder == "/files/qwen3-small"
