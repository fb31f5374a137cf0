"""`tools/gpu-check` as far as a CPU goes: every step at small sizes, and what it says where there is no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOP = Path(__file__).resolve().parents[2]
TOOL = TOP / "tools" / "gpu-check"
RESULT = TOP / "tests" / "bench" / "results" / "gpu.json"


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *arguments], check=False, capture_output=True, text=True, cwd=TOP)


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_every_step_passes_dry_and_leaves_no_figure_of_a_gpu(tmp_path: Path) -> None:
    before = RESULT.read_bytes() if RESULT.exists() else None
    done = check("--dry", "--out", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["failed"] == []
    assert found["machine"]["device"] == "CPU (--dry)"
    steps = ("loss_difference_float32", "loss_bfloat16_from_float32", "held_after_offload", "publish_gb_per_s")
    assert found["measures"].keys() >= {*steps, "logps_difference", "engine_tokens"}
    assert (RESULT.read_bytes() if RESULT.exists() else None) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")
def test_without_a_gpu_it_says_so_and_measures_nothing() -> None:
    done = check()
    assert (done.returncode, done.stdout) == (1, "")
    assert "torch sees no GPU here" in done.stderr


def test_an_unknown_step_is_told_with_those_that_are() -> None:
    done = check("--dry", "--steps", "train,fly")
    assert done.returncode == 2
    assert "unknown step fly; known: train, memory, publish, logps, engine" in done.stderr


def test_what_is_carried_along_has_a_pin() -> None:
    text = TOOL.read_text()
    carried = text.partition("CARRIED = (")[2].partition(")")[0].replace('"', "").split(", ")
    pins = {line.split("==")[0].lower() for line in (TOP / "constraints/python.txt").read_text().splitlines()}
    assert len(carried) >= 6
    assert {name.replace("_", "-") for name in carried} <= {pin.replace("_", "-") for pin in pins}
