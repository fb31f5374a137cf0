"""`twinpod ... rlj/NAME`: what a person types about a job on a cluster, and what they see of its answers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from twinpod.api import names
from twinpod.api.load import load_manifest
from twinpod.cli.__main__ import main, parser
from twinpod.cli.status import lines_of
from twinpod.cli.target import target_of
from twinpod.client.cluster import ClusterJob
from twinpod.client.kubectl import Kubectl, fault_of
from twinpod.client.reader import reader_pod
from twinpod.errors import EnvironmentFault, InputError, TwinpodError, Unreachable

SAMPLE = Path(__file__).resolve().parents[2] / "manifests/samples/reverse-letters.yaml"


def typed(*words: str) -> argparse.Namespace:
    return parser().parse_args(["inspect", *words])


@pytest.mark.parametrize(
    "words",
    ["rlj/x x-master -n demo --lines 3", "rlj/x -n demo x-master --lines 3", "-n demo --lines 3 rlj/x x-master"],
)
def test_options_may_stand_anywhere(words: str) -> None:
    given = parser().parse_args(["logs", *words.split()])
    assert (given.target, given.namespace, given.pod, given.lines) == ("rlj/x", "demo", "x-master", 3)


@pytest.mark.parametrize("kind", ["rlj", "rljob", "rljobs", "rljobs.twinpod.dev"])
def test_a_job_on_a_cluster_is_named_as_kubectl_names_it(kind: str) -> None:
    target = target_of(typed(f"{kind}/letters", "-n", "demo", "--context", "big"))
    assert target == ClusterJob(name="letters", kubectl=Kubectl(context="big", namespace="demo"))


def test_anything_else_is_a_folder() -> None:
    assert target_of(typed("runs/letters")) == Path("runs/letters")


def test_a_folder_that_is_called_like_a_kind_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rlj" / "letters").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert target_of(typed("rlj/letters")) == Path("rlj/letters")


@pytest.mark.parametrize(
    ("words", "said"),
    [(("rlj/",), "names no job"), (("rlj/a/b",), "names no job"), (("runs/x", "-n", "demo"), "write rlj/NAME")],
)
def test_a_target_that_means_nothing_is_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        target_of(typed(*words))


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ('Error from server (NotFound): pods "x" not found', InputError, 'pods "x" not found'),
        ('Error from server (Forbidden): pods is forbidden: User "jo"', InputError, "is forbidden"),
        ("The connection to the server 127.0.0.1:1 was refused - did you specify?", Unreachable, "check the context"),
        ('error: the server doesn\'t have a resource type "rljobs"', EnvironmentFault, "install Twinpod"),
        ('error: context "big" does not exist', InputError, "does not exist"),
        ("", EnvironmentFault, "failed without a word"),
    ],
)
def test_what_kubectl_says_becomes_an_error_of_its_kind(said: str, kind: type[TwinpodError], words: str) -> None:
    fault = fault_of(said, "kubectl get")
    assert type(fault) is kind
    assert words in str(fault)


def test_without_kubectl_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["status", "rlj/letters"]) == 1
    assert "kubectl: is not installed" in capsys.readouterr().err


def test_the_reader_sees_both_volumes_and_may_do_nothing_else() -> None:
    pod = reader_pod(load_manifest(SAMPLE), "12345678-0000", "registry/twinpod/master:1")
    spec = pod["spec"]
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in spec["volumes"][:2]}
    assert claims == {"reverse-letters-state-12345678", "reverse-letters-snapshots-12345678"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert names.LABEL_JOB not in pod["metadata"]["labels"], "the operator must not take it for a pod of the job"


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def test_status_tells_progress_and_conditions_in_their_order() -> None:
    status: dict[str, Any] = {
        "iteration": 12, "phase": "train", "weightVersion": 13, "reward": "0.512", "pods": "2/2", "restarts": 1,
        "conditions": [condition("Ready", "True", "Training"), condition("Accepted", "True", "Valid", "all fields")],
    }  # fmt: skip
    lines = list(lines_of({"spec": {"iterations": 100}, "status": status}))
    assert lines[0] == "iteration   12 of 100, phase train, weights version 13"
    assert lines[2] == "pods        2/2, 1 restarts"
    assert [line.split()[0] for line in lines[3:]] == ["Accepted", "Ready"]
    assert lines[3].endswith("Valid: all fields")


def test_a_job_that_no_operator_has_seen_says_where_to_look() -> None:
    assert "operator has not seen the job" in next(iter(lines_of({"spec": {}})))
