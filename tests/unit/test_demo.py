"""The pure parts of `make demo` on Kubernetes; those of the smoke run are in test_smoke.py."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from twinpod.errors import EnvironmentFault, InputError

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
places, watch = sys.modules["places"], sys.modules["watch"]


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


@pytest.mark.parametrize(
    ("faults", "outcome", "rests"),
    [
        ([], "answered", 0),
        ([EnvironmentFault("TLS handshake timeout", where="kubectl get")] * 3, "answered", 3),
        ([EnvironmentFault("TLS handshake timeout", where="kubectl get")] * 4, EnvironmentFault, 3),
        ([InputError("rljobs x not found", where="kubectl get")], InputError, 0),
    ],
    ids=["at once", "in the end", "never", "what is not there is not asked for again"],
)
def test_a_look_that_fails_is_made_again_before_the_job_is_given_up(
    faults: list[Exception], outcome: str | type[Exception], rests: int, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting, rested = list(faults), []

    def call() -> str:
        if waiting:
            raise waiting.pop(0)
        return "answered"

    if isinstance(outcome, str):
        assert watch.steadily(call, rested.append) == outcome
    else:
        with pytest.raises(outcome):
            watch.steadily(call, rested.append)
    assert len(rested) == rests
    assert capsys.readouterr().out.count("TLS handshake timeout; asks again in 5 s") == rests


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
    assert watch.look({"spec": {"iterations": 9}, "status": status}) == (line, ended)


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


@pytest.mark.parametrize("before", ["", "images: [{name: twinpod/etcd, newName: mine}]\n"], ids=["none", "a person's"])
def test_references_become_images_of_the_kustomization(before: str) -> None:
    text = demo.with_images(f"resources: [a]\n{before}", {"twinpod/etcd": "127.0.0.1:5000/twinpod/etcd:abc"})
    assert yaml.safe_load(text) == {
        "resources": ["a"],
        "images": [{"name": "twinpod/etcd", "newName": "127.0.0.1:5000/twinpod/etcd", "newTag": "abc"}],
    }


def test_images_that_a_person_has_set_below_are_cleared() -> None:
    assert yaml.safe_load(demo.with_images("resources: [a]\nimages: [{name: b, newName: c}]\n", {})) == {
        "resources": ["a"]
    }


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on this machine")
@pytest.mark.parametrize("overlay", ["default", "embedded"])
def test_each_overlay_takes_our_images_where_a_person_has_set_others(tmp_path: Path, overlay: str) -> None:
    tree = tmp_path / "manifests"
    shutil.copytree(TOP / "manifests", tree)
    for one in ("default", "embedded"):
        with (tree / one / "kustomization.yaml").open("a") as file:
            file.write("images: [{name: twinpod/etcd, newName: mine/etcd, newTag: v0}]\n")
    names = ("operator", "etcd", "master", "trainer", "inference")
    demo.set_images(tree, overlay, {f"twinpod/{name}": f"r:1/twinpod/{name}:t" for name in names})
    text = subprocess.run(["kubectl", "kustomize", tree / overlay], check=True, capture_output=True, text=True).stdout
    assert "mine/etcd" not in text
    assert all(f"r:1/twinpod/{name}:t" in text for name in names)


def node(*, ready: bool = True, taint: str = "", cordoned: bool = False) -> dict[str, Any]:
    taints = [{"key": "x", "effect": taint}] if taint else []
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {"spec": {"taints": taints, "unschedulable": cordoned}, "status": {"conditions": conditions}}


def etcd(replicas: int) -> list[dict[str, Any]]:
    other = {"metadata": {"name": "other"}, "spec": {"replicas": 7}}
    return [other, {"metadata": {"name": "twinpod-etcd"}, "spec": {"replicas": replicas}}]


@pytest.mark.parametrize(
    ("nodes", "sets", "overlay"),
    [
        ([node()] * 3, [], "default"),
        ([node(taint="PreferNoSchedule")] * 3, [], "default"),
        ([node()] * 2, [], "embedded"),
        ([node(), node(), node(taint="NoSchedule")], [], "embedded"),
        ([node(), node(), node(cordoned=True)], [], "embedded"),
        ([node(), node(), node(ready=False)], [], "embedded"),
        ([node()] * 2, etcd(3), "default"),
        ([node()] * 9, etcd(1), "embedded"),
    ],
    ids=["three", "preferences", "two", "tainted", "cordoned", "not ready", "three members stay", "one member stays"],
)
def test_etcd_has_as_many_members_as_nodes_take_and_keeps_those_that_it_has(
    nodes: list[dict[str, Any]], sets: list[dict[str, Any]], overlay: str
) -> None:
    chosen, why = places.overlay_for(nodes, sets)
    assert chosen == overlay
    assert "etcd" in why


def test_how_to_use_the_cluster_is_told_with_kubectls_place_when_the_machine_has_none() -> None:
    (config, path, down) = places.hints_of("/k/config", "/k/bin/kubectl", None, "")
    assert (config, path) == ("export KUBECONFIG=/k/config", "export PATH=/k/bin:$PATH")
    assert down.startswith("make cluster-down ")
    assert "deletes all its volumes" in down


def test_a_cluster_of_another_name_is_ended_by_that_name() -> None:
    (_, down) = places.hints_of("/k/config", "/k/bin/kubectl", "/usr/bin/kubectl", "ci")
    assert down.startswith("TWINPOD_CLUSTER=ci make cluster-down ")


def test_what_a_tool_says_when_it_fails_is_one_line() -> None:
    with pytest.raises(demo.EnvironmentFault, match=r": it broke$"):
        places.answer([sys.executable, "-c", "raise SystemExit('it broke')"])


def test_a_context_without_a_registry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINPOD_CONTEXT", "prod")
    monkeypatch.delenv("TWINPOD_REGISTRY", raising=False)
    with pytest.raises(InputError, match="TWINPOD_REGISTRY"):
        demo.find_place(must=True)


def test_an_interrupt_tells_how_to_follow_and_to_delete_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), demo.told_when_interrupted(demo.Kubectl(namespace="demo"), "x"):
        raise KeyboardInterrupt
    said = capsys.readouterr().out
    assert "kubectl -n demo get rl -w" in said
    assert "kubectl -n demo delete rlj x" in said


def test_a_command_is_told_as_a_person_types_it() -> None:
    kubectl = demo.Kubectl(context="big", namespace="demo")
    assert demo.typed(kubectl, "delete rlj", "x") == "kubectl --context big -n demo delete rlj x"
