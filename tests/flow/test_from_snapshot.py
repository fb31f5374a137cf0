"""Local runs that begin with what another run left: its export, or a snapshot. The digests of the weights prove it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from twinpod.master.inspect import inspect

pytestmark = [pytest.mark.timeout(1500), pytest.mark.skipif(os.geteuid() != 0, reason="local mode needs root")]
SAMPLE = Path(__file__).resolve().parents[2] / "manifests/samples/smoke.yaml"


def test_the_first_weights_are_those_that_the_other_run_left(tmp_path: Path) -> None:
    left = first_to_last(tmp_path, "first", smoke()["spec"]["model"])
    export = first_to_last(tmp_path, "second", {"fromSnapshot": {"claim": "first"}})
    snapshot = {"fromSnapshot": {"claim": "first", "folder": "iteration-000001-epoch-1"}}
    shaped = first_to_last(tmp_path, "third", {**smoke()["spec"]["model"], **snapshot})
    assert left[0] != left[-1], "the first run has trained"
    assert export[0] == left[-1]
    assert shaped[0] == left[-1]


def smoke() -> dict[str, Any]:
    return dict(yaml.safe_load(SAMPLE.read_text()))


def first_to_last(folder: Path, name: str, model: dict[str, Any]) -> list[str]:
    """Digests of the weights of a run of one iteration: those that it began with, those that it left."""
    job = smoke()
    job["metadata"]["name"] = name
    job["spec"]["model"] = model
    (folder / f"{name}.yaml").write_text(json.dumps(job))
    words = ["run", f"{name}.yaml", "--local", "--no-live", "--no-check", "--iterations", "1", "--out", name]
    command = [sys.executable, "-m", "twinpod.cli", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [one.digest for one in inspect(folder / name).versions]
