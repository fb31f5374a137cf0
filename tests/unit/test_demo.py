"""The pure parts of `make demo` and `make smoke` on Kubernetes."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

TOP = Path(__file__).resolve().parents[2]


def loaded() -> ModuleType:
    loader = SourceFileLoader("tools_demo", str(TOP / "tools/demo"))
    spec = importlib.util.spec_from_loader("tools_demo", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tools_demo"] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


demo = loaded()


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


@pytest.mark.parametrize(
    ("status", "line", "ended"),
    [
        (None, "iteration 0/9, the operator has not seen it yet", ""),
        (
            {"conditions": [condition("Ready", "False", "Unschedulable", "0/2 nodes")], "pods": "0/2"},
            "iteration 0/9, pods 0/2, Unschedulable: 0/2 nodes",
            "",
        ),
        (
            {"conditions": [condition("Ready", "True", "Training")], "iteration": 4, "reward": "0.5", "restarts": 1},
            "iteration 4/9, reward 0.5, 1 restarts, Training",
            "",
        ),
        (
            {"conditions": [condition("Ready", "False", "x"), condition("Succeeded", "True", "Completed", "done")]},
            "iteration 0/9, Succeeded: done",
            "Succeeded",
        ),
        ({"conditions": [condition("Failed", "True", "Budget")]}, "iteration 0/9, Failed", "Failed"),
    ],
)
def test_a_jobs_state_is_one_line_and_says_when_it_has_ended(
    status: dict[str, Any] | None, line: str, ended: str
) -> None:
    assert demo.look({"spec": {"iterations": 9}, "status": status}) == (line, ended)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (60, 60), (61, 31), (500, 56)])
def test_a_curve_fits_the_terminal_however_long_the_run(count: int, columns: int) -> None:
    lines = list(demo.sketch([index / count for index in range(count)]))
    assert len(lines) == 11
    assert max(len(line.partition("│")[2]) for line in lines) == columns
    assert f"over {count} iterations" in lines[-1]


def test_a_run_without_iterations_has_no_curve() -> None:
    assert list(demo.sketch([])) == ["no iteration was committed"]


def test_a_constant_curve_is_drawn() -> None:
    assert len(list(demo.sketch([0.0, 0.0]))) == 11


def test_references_become_images_of_the_kustomization() -> None:
    text = demo.with_images("resources: [a]\n", {"twinpod/etcd": "127.0.0.1:5000/twinpod/etcd:abc"})
    assert yaml.safe_load(text) == {
        "resources": ["a"],
        "images": [{"name": "twinpod/etcd", "newName": "127.0.0.1:5000/twinpod/etcd", "newTag": "abc"}],
    }


def test_a_context_without_a_registry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINPOD_CONTEXT", "prod")
    monkeypatch.delenv("TWINPOD_REGISTRY", raising=False)
    with pytest.raises(demo.InputError, match="TWINPOD_REGISTRY"):
        demo.find_place(must=True)


def test_a_pool_for_the_smoke_job_is_a_sound_resource() -> None:
    from twinpod.api.load import check

    job = yaml.safe_load(demo.SMOKE.read_text())
    assert check(demo.pool_of("smoke", job))
