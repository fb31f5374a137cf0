"""The pure decisions of local mode: what a failed pod means, which folder may be resumed, which address is free."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from twinpod.api import names
from twinpod.api.load import load_manifest
from twinpod.api.types import RLJob
from twinpod.errors import EXIT_INPUT, EnvironmentFault, InputError
from twinpod.local.addresses import claimed_block, hosts_file, pod_address
from twinpod.local.folder import RunFolder, refuse_difference
from twinpod.local.inputs import load_run
from twinpod.local.mounts import Volumes, containers_of, needed_paths
from twinpod.local.pods import how_it_ended
from twinpod.local.rendering import render_locally
from twinpod.local.sources import as_seen_from_outside, source_claims
from twinpod.master.books import Books
from twinpod.master.settings import identity_of
from twinpod.records.verdict import Outcome, Verdict, decide

KILLED = "was killed (SIGKILL: kill -9, or the machine ran out of memory)"
UID = "12345678-0000-0000-0000-000000000000"
SAMPLE = Path(__file__).resolve().parents[2] / "manifests/samples/reverse-letters.yaml"


def ended(pod: str, code: int) -> Outcome:
    return Outcome(pod=pod, code=code, reason=f"{pod} ended with {code}" if code else "")


@pytest.mark.parametrize(
    ("outcomes", "restarts", "verdict"),
    [
        ([], 0, Verdict.GOES_ON),
        ([ended("j-master", 0)], 0, Verdict.SUCCEEDED),
        ([ended("j-hybrid-0", 0)], 0, Verdict.GOES_ON),
        ([ended("j-hybrid-0", 1), ended("j-master", 0)], 0, Verdict.SUCCEEDED),
        ([ended("j-hybrid-0", 1)], 0, Verdict.RESTARTS),
        ([ended("j-master", -9)], 2, Verdict.RESTARTS),
        ([ended("j-master", -9)], 3, Verdict.FAILED),
        ([ended("j-master", 2)], 0, Verdict.FAILED),
        ([ended("j-hybrid-1", 1), ended("j-master", 3), ended("j-hybrid-0", 2)], 0, Verdict.FAILED),
    ],
)
def test_what_ended_pods_mean_for_the_job(outcomes: list[Outcome], restarts: int, verdict: Verdict) -> None:
    decision = decide(outcomes, "j-master", restarts, 3)
    assert decision.verdict is verdict
    assert decision.wrong_input == any(outcome.code == EXIT_INPUT for outcome in outcomes)
    assert not decision.wrong_input or decision.reason.endswith("ended with 2")


def test_used_up_restarts_are_told_with_their_reason() -> None:
    reason = decide([ended("j-master", 1)], "j-master", 3, 3).reason
    assert "j-master ended with 1" in reason
    assert "all 3 restarts are used up" in reason


def test_a_second_run_on_the_same_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.lock()
    assert first.in_use()
    with pytest.raises(EnvironmentFault) as refused:
        second.lock()
    assert "another run uses this folder" in str(refused.value)
    assert "\n" not in str(refused.value)


POOL = """
apiVersion: twinpod.dev/v1alpha1
kind: RolloutPool
metadata: {name: helpers}
spec: {job: JOB, replicas: 1}
"""
SANDBOX = """
apiVersion: twinpod.dev/v1alpha1
kind: SandboxPool
metadata: {name: code}
spec: {runtimes: [{name: python, image: python}]}
"""


def test_a_file_may_hold_a_job_and_its_pools(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"---\n{SAMPLE.read_text()}---\n# only a remark\n---{POOL.replace('JOB', 'reverse-letters')}")
    job, pools = load_run(file)
    assert (job, [pool.metadata.name for pool in pools]) == (load_manifest(SAMPLE), ["helpers"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (POOL.replace("JOB", "other"), "serves the job other, the file's job is reverse-letters"),
        (SANDBOX, "SandboxPool code is not honoured by local mode"),
        (SAMPLE.read_text(), "holds 2 RLJobs; one is run at a time"),
        (f"{POOL}---{POOL}".replace("JOB", "reverse-letters"), "RolloutPool helpers stands twice"),
        (POOL.replace("JOB", "x, replica: 1"), "document at line 24.*replica"),
    ],
    ids=["other job", "sandbox", "two jobs", "twice", "misspelt"],
)
def test_what_a_run_cannot_have_beside_its_job_is_named(tmp_path: Path, more: str, said: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"{SAMPLE.read_text()}---\n{more}")
    with pytest.raises(InputError, match=f"(?s){said}"):
        load_run(file)


def test_a_run_may_begin_with_what_a_run_beside_it_left(tmp_path: Path) -> None:
    old, new = RunFolder(tmp_path / "old"), RunFolder(tmp_path / "new")
    job = load_manifest(SAMPLE)
    for run in (old, new):
        run.root.mkdir()
        run.adopt(job)
    (old.snapshots / "export").mkdir(parents=True)
    claim = f"reverse-letters-snapshots-{old.uid()[:8]}"
    for name in ("old", claim):
        asked = starting_from(job, name, "export")
        assert source_claims(asked, new) == {name: old.snapshots}
        assert as_seen_from_outside(asked, source_claims(asked, new)).spec.model.from_ == str(old.snapshots / "export")
    with pytest.raises(InputError, match=f"no run in .* has it; name a run folder beside this one, .*: old, {claim}"):
        source_claims(starting_from(job, "older", "export"), new)
    with pytest.raises(InputError, match=r"is 'iteration-7'; .* holds export"):
        source_claims(starting_from(job, "old", "iteration-7"), new)
    assert source_claims(job, new) == {}


def starting_from(job: RLJob, claim: str, folder: str, *, config: bool = False) -> RLJob:
    document = job.as_manifest()
    own = document["spec"]["model"] if config else {}
    document["spec"]["model"] = {**own, "fromSnapshot": {"claim": claim, "folder": folder}}
    return RLJob.model_validate(document)


@pytest.mark.parametrize("config", [False, True], ids=["an export", "a snapshot"])
def test_every_container_sees_the_run_that_the_weights_come_from_and_cannot_change_it(
    tmp_path: Path, config: bool
) -> None:
    old, new = RunFolder(tmp_path / "old"), RunFolder(tmp_path / "new")
    (old.snapshots / "export").mkdir(parents=True)
    old.adopt(load_manifest(SAMPLE))
    assert old.uid()
    job = starting_from(load_manifest(SAMPLE), "old", "export", config=config)
    rendered = render_locally(job, UID)
    claims = rendered.claims(new.state, new.snapshots) | source_claims(job, new)
    volumes = Volumes(new, claims, needed_paths(job))
    sights = [volumes.sight(pod, container) for pod in rendered.pods for container in containers_of(pod)]
    assert len(sights) == 3
    for sight in sights:
        assert (str(old.snapshots), names.SOURCE_FOLDER, True) in sight.binds


def test_the_uid_of_a_run_survives_its_process(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).uid() == RunFolder(tmp_path).uid()


def test_a_resumed_folder_keeps_its_job(tmp_path: Path) -> None:
    job = load_manifest(SAMPLE)
    folder = RunFolder(tmp_path)
    other = RLJob.model_validate(job.as_manifest() | {"spec": job.as_manifest()["spec"] | {"seed": 99}})
    for one in (job, other, job):  # nothing was made yet: the input may be corrected in every way
        assert folder.adopt(one) is None
    books = Books.open(folder.state, identity_of(job))
    books.record_version(1, 0, "d", "l")
    books.close()
    assert folder.adopt(job) == ()
    with pytest.raises(InputError, match=r"spec\.seed"):
        folder.adopt(other)
    assert json.loads(folder.job_file.read_text())["spec"]["seed"] == job.spec.seed


def test_another_job_in_the_same_folder_is_refused_by_its_field() -> None:
    with pytest.raises(InputError) as refused:
        refuse_difference({"spec": {"seed": 1, "iterations": 5}}, {"spec": {"seed": 2, "iterations": 9}}, "runs/x")
    assert refused.value.where == "spec.seed"


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("iterations", 5, 9),
        ("algorithm.learningRate", "5e-4", "1e-4"),
        ("algorithm.groupSize", 4, 8),
        ("rollout.temperature", "1", "0.8"),
        ("reward.kind", "prefix", "exact"),
        ("hybrid.sharedMemory", "1Mi", "64Mi"),
        ("storage.snapshotEvery", 1, 5),
    ],
)
def test_what_may_change_while_suspended_may_change_between_two_local_starts(
    path: str, old: object, new: object
) -> None:
    documents = []
    for value in (old, new):
        node: object = value
        for part in reversed(f"spec.{path}".split(".")):
            node = {part: node}
        documents.append(node)
    changed = refuse_difference(*documents, "runs/x")
    assert [(one.path, one.old, one.new) for one in changed] == [(f"spec.{path}", old, new)]


@pytest.mark.parametrize("path", ["model.dtype", "dataset.heldOut", "storage.snapshots.size", "managedBy"])
def test_what_is_fixed_stays(path: str) -> None:
    part, _, rest = path.partition(".")
    old, new = ({"spec": {part: {rest: value} if rest else value}} for value in (1, 2))
    with pytest.raises(InputError) as refused:
        refuse_difference(old, new, "runs/x")
    assert refused.value.where == f"spec.{path}"


def test_a_block_with_a_taken_port_is_passed_over() -> None:
    with claimed_block([(7400,)], (2379,)) as block:
        free = block
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an earlier test's connection may still linger
        listener.bind((pod_address(free, 0), 7400))
        listener.listen()
        with claimed_block([(7400,)], (2379,)) as another:
            assert another != free


def test_two_runs_that_start_together_never_have_the_same_block() -> None:
    with claimed_block([(7400,)], (2379,)) as first, claimed_block([(7400,)], (2379,)) as second:
        assert first != second


def test_a_port_taken_everywhere_is_named() -> None:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(EnvironmentFault) as refused, claimed_block([(port,)], ()):
            pass
    assert f"port {port} is taken" in str(refused.value)
    assert "ss -ltnp" in str(refused.value)


def test_the_hosts_file_names_every_pod() -> None:
    text = hosts_file({"127.74.1.10": ("j-master", "j-master.j")})
    assert "127.74.1.10 j-master j-master.j\n" in text
    assert "127.0.0.1 localhost" in text


@pytest.mark.parametrize(
    ("code", "last", "words"),
    [
        (3, "weights lie", "ended with exit code 3: weights lie"),
        (-15, "bye", "was killed by signal 15: bye"),
        (-9, "iteration 4", KILLED),
        (1, "unshare: sigprocmask unblock failed: Invalid argument", KILLED),
    ],
)
def test_an_end_is_told_in_words_and_unshare_s_complaint_about_sigkill_is_understood(
    code: int, last: str, words: str
) -> None:
    assert how_it_ended(code, last) == words
