"""`twinpod ... rlj/NAME`: what a person types about a job on a cluster, and what they see of its answers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from twinpod.api import names
from twinpod.api.load import load_manifest
from twinpod.api.reading_place import ReadingPlace, from_text
from twinpod.cli.__main__ import main, parser
from twinpod.cli.status import lines_of
from twinpod.cli.target import target_of
from twinpod.client.cluster import ClusterJob
from twinpod.client.kubectl import Kubectl, fault_of
from twinpod.client.reader import reader_pod
from twinpod.errors import EnvironmentFault, InputError, TwinpodError, Unreachable
from twinpod.testing.fake_kubectl import FakeKubectl
from twinpod_operator.render import Platform, render_job

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


@pytest.mark.parametrize("command", ["status", "inspect", "logs"])
def test_a_bare_name_gets_the_hint_how_to_name_a_job(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "letters"]) == 2
    said = "twinpod: letters: there is no such folder; write runs/letters, or rlj/letters for a job on a cluster\n"
    assert capsys.readouterr().err == said


def test_a_folder_here_may_be_called_by_its_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "letters").mkdir()
    monkeypatch.chdir(tmp_path)
    assert target_of(typed("letters")) == Path("letters")


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


def test_several_calls_run_side_by_side_and_the_worst_exit_code_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each of these ends only when it has seen the other."""
    script = tmp_path / "kubectl"
    script.write_text(f"#!/bin/sh\ncd {tmp_path}\ntouch $1; until test -e $2; do :; done; echo $1; exit $3\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert Kubectl().follow_all([("one", "two", "0"), ("two", "one", "3")]) == 3
    assert sorted(capfd.readouterr().out.split()) == ["one", "two"]


def test_the_reader_sees_both_volumes_and_may_do_nothing_else() -> None:
    place = ReadingPlace(image="twinpod/master:1", spec={"nodeSelector": {"disk": "here"}})
    pod = reader_pod(load_manifest(SAMPLE), "12345678-0000", place)
    spec = pod["spec"]
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in spec["volumes"][:2]}
    assert claims == {"reverse-letters-state-12345678", "reverse-letters-snapshots-12345678"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert (spec["containers"][0]["image"], spec["nodeSelector"]) == ("twinpod/master:1", {"disk": "here"})
    assert names.LABEL_JOB not in pod["metadata"]["labels"], "the operator must not take it for a pod of the job"


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def told(*words: str) -> dict[str, Any]:
    return {"status": {"conditions": [condition(*words)]}}


UID = "12345678-0000"
PLATFORM = Platform(
    master_image="m:1", trainer_image="t:1", inference_image="i:1", etcd=("etcd:2379",), image_pull_secrets=("pull",)
)


def cluster_of(*kinds: str, **changes: Any) -> FakeKubectl:
    """A cluster that holds the sample's children of these kinds, as the operator makes them, and the job."""
    job = load_manifest(SAMPLE)
    children = render_job(job, platform=PLATFORM, uid=UID, attempt=3)
    resource = {**job.as_manifest(), **changes}
    resource["metadata"]["uid"] = UID
    items: dict[str, list[dict[str, Any]]] = {"rljobs.twinpod.dev": [resource]}
    for plural, kind in (("pods", "Pod"), ("configmaps", "ConfigMap")):
        items[plural] = [child for child in children if child["kind"] == kind and kind in kinds]
    for number, pod in enumerate(items["pods"]):
        pod["metadata"]["creationTimestamp"] = f"2030-01-01T00:00:{number:02}Z"
        pod["status"] = {"phase": "Failed"}
    return FakeKubectl(items=items, answer="iterations 3\n")


@pytest.mark.parametrize("left", ["Pod", "ConfigMap"], ids=["ended pods", "no pods: suspended, or failed"])
def test_a_job_without_a_running_master_is_read_with_the_master_s_image(left: str) -> None:
    kubectl = cluster_of(left)
    assert ClusterJob(name="reverse-letters", kubectl=kubectl).inspect("--json") == "iterations 3\n"
    (reader,) = kubectl.given
    assert reader["spec"]["containers"][0]["image"] == "m:1"
    assert reader["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    assert kubectl.asked[-1][:3] == ("delete", "pod", "reverse-letters-reader"), "it is removed after the call"


def test_a_job_that_no_operator_has_touched_cannot_be_read_and_says_why() -> None:
    with pytest.raises(EnvironmentFault, match="no master pod and no ConfigMap of the operator's; start the operator"):
        ClusterJob(name="reverse-letters", kubectl=cluster_of()).inspect()


def test_of_a_place_that_somebody_edited_nothing_but_the_place_is_taken() -> None:
    place = from_text('{"image": "m:1", "spec": {"hostNetwork": true, "tolerations": []}}')
    assert place == ReadingPlace(image="m:1", spec={"tolerations": []})
    for text in ("", "[]", "{}", '{"image": "m:1", "spec": 5}', "null"):
        with pytest.raises(InputError, match=r"twinpod\.dev/reader of its ConfigMap was changed"):
            from_text(text)


def test_a_running_master_is_read_in_its_pod() -> None:
    kubectl = cluster_of("Pod")
    kubectl.items["pods"][0]["status"]["phase"] = "Running"  # type: ignore[index]
    ClusterJob(name="reverse-letters", kubectl=kubectl).inspect()
    assert kubectl.given == []
    assert kubectl.asked[-1][:2] == ("exec", "reverse-letters-master-a3")


@pytest.mark.parametrize(
    ("given", "follow", "asked"),
    [
        ("", False, [("reverse-letters-master-a3",), ("reverse-letters-hybrid-0-a3",)]),
        ("", True, [("-l", "twinpod.dev/job=reverse-letters")]),
        ("reverse-letters-m", True, [("reverse-letters-master-a3",)]),
        ("reverse-letters-", True, [("reverse-letters-master-a3",), ("reverse-letters-hybrid-0-a3",)]),
    ],
)
def test_logs_are_those_of_the_pods_that_were_meant(given: str, follow: bool, asked: list[tuple[str, ...]]) -> None:
    kubectl = cluster_of("Pod")
    assert ClusterJob(name="reverse-letters", kubectl=kubectl).logs(given, 7, follow=follow) == 0
    calls = [call[1:] for call in kubectl.asked if call[0] == "logs"]
    assert [call[: len(wanted)] for call, wanted in zip(calls, asked, strict=True)] == asked
    assert all(("--follow" in call) == follow and "--tail=7" in call for call in calls)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            told("Failed", "True", "RestartBudgetSpent", "all 3 are used up"),
            r"no pods any more: it has failed \(RestartBudgetSpent: all 3 are used up\); .* twinpod inspect rlj/",
        ),
        ({"spec": {"suspend": True}}, "no pods: it is suspended; .* twinpod inspect rlj/reverse-letters; to go on: "),
        (
            told("Ready", "False", "QuotaRefused", "full"),
            r"no pods yet \(QuotaRefused: full\); see kubectl describe rlj reverse-letters",
        ),
        ({}, "no pods yet; see kubectl describe"),
    ],
    ids=["failed", "suspended", "refused", "unseen"],
)
def test_logs_of_a_job_without_pods_say_why_there_are_none(changes: dict[str, Any], said: str) -> None:
    kubectl = cluster_of("ConfigMap", **changes)
    with pytest.raises(InputError, match=said):
        ClusterJob(name="reverse-letters", kubectl=kubectl).logs("", 7, follow=False)


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
