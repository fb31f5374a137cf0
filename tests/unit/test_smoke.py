"""The steps of `make smoke`, with a job that is played: one whose pool never helped fails, or that lost something."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from twinpod.api.load import check
from twinpod.errors import EnvironmentFault
from twinpod.records.run import IterationRecord, PhaseSeconds, PodSegments, RunReport

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "tools"))
_spec = importlib.util.spec_from_file_location("tools_smoke", TOP / "tools/smoke.py")
assert _spec is not None
assert _spec.loader is not None
smoke = importlib.util.module_from_spec(_spec)
sys.modules["tools_smoke"] = smoke
_spec.loader.exec_module(smoke)

POOL = "smoke-helpers"
SECONDS = PhaseSeconds(generate=1.0, train=1.0, weights=0.0, switch=0.0, snapshot=0.0, other=0.0)
SAMPLE = [one for one in yaml.safe_load_all((TOP / "manifests/samples/smoke.yaml").read_text()) if one]


def record(iteration: int, epoch: int) -> IterationRecord:
    """One iteration; the weights after it have the next number."""
    return IterationRecord(
        iteration=iteration, line=1, epoch=epoch, version=iteration + 1, snapshot="", groups=4, samples=16, reward=0.1,
        right=0.0, length=3.0, tokens_generated=48, tokens_trained=48, loss=0.0, weights_gap=0.0, stats="",
        seconds=SECONDS, committed_at=0.0, rolled_back=False,
    )  # fmt: skip


def segments(iteration: int, pod: str, version: int, count: int = 8) -> PodSegments:
    return PodSegments(iteration=iteration, pod=pod, version=version, segments=count, tokens=3 * count)


def report(epochs: list[int], *pods: PodSegments, **more: Any) -> RunReport:
    """Books with an iteration for each of these epochs."""
    done = tuple(record(number, epoch) for number, epoch in enumerate(epochs, 1))
    fields: dict[str, Any] = {
        "job": "smoke", "state": "running", "epoch": max(epochs, default=1), "line": 1,
        "iterations_committed": len(done), "iterations_rolled_back": 0, "resumes": 0,
        "reward_last_5": 0.1, "right_last_5": 0.0, "trajectories": (), "groups": (),
        "prompts_trained": 0, "prompts_by_times_trained": (), "trained_twice_in_a_pass": 0,
        "segments": 0, "tokens": 0, "trajectories_archived": 0,
        "pods": (), "pods_by_iteration": pods, "trajectories_spanning_versions": 0,
        "trajectories_by_versions": (), "duplicate_tokens": 0, "chains_broken": 0, "versions": (), "counters": (),
        "seconds": SECONDS, "iterations": done, "evaluations": (), "settings_changes": (), "progress": None,
    }  # fmt: skip
    return RunReport(**fields | more)


@dataclass
class PlayedJob:
    """A job that commits an iteration whenever it is looked at; its pool helps from an iteration on, if ever."""

    helps_from: int = 3
    loses: bool = False  # starts anew when it is resumed
    fails_at: int = 0
    epochs: list[int] = field(default_factory=list)
    spec: dict[str, Any] = field(default_factory=lambda: {"iterations": smoke.MANY})
    changes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return len(self.epochs) >= self.spec["iterations"]

    def resource(self) -> dict[str, Any]:
        suspended = self.spec.get("suspend", False)
        failed = self.fails_at and len(self.epochs) >= self.fails_at
        if not (suspended or failed or self.over):
            self.epochs.append(1 + len(self.changes) // 2)
        facts = {"Suspended": suspended, "Succeeded": self.over and not failed, "Failed": failed}
        conditions = [{"type": kind, "status": str(bool(fact)), "reason": kind} for kind, fact in facts.items()]
        return {"spec": self.spec, "status": {"iteration": len(self.epochs), "conditions": conditions}}

    def pods(self) -> list[dict[str, Any]]:
        return [] if self.spec.get("suspend") else [{"status": {"phase": "Running"}}]

    def report(self) -> RunReport:
        helped = [segments(n, f"{POOL}-rollout-0", n) for n in range(self.helps_from, len(self.epochs) + 1)]
        return report(self.epochs, *helped)

    def change(self, spec: dict[str, Any]) -> None:
        self.changes.append(spec)
        self.spec |= spec
        if self.loses and len(self.changes) == 2:
            self.epochs = []


@dataclass
class Clock:
    """Time that goes by only when somebody rests."""

    at: float = 0.0

    def now(self) -> float:
        return self.at

    def rest(self, seconds: float) -> None:
        self.at += seconds


def prove(job: PlayedJob) -> tuple[RunReport, list[str]]:
    said: list[str] = []
    clock = Clock()
    return smoke.Smoke(job=job, pool=POOL, say=said.append, now=clock.now, rest=clock.rest).prove(), said


def test_a_job_and_a_pool_that_work_are_proved_in_steps_that_are_told() -> None:
    job = PlayedJob()
    books, said = prove(job)
    assert [line.partition(":")[2].partition(":")[0] for line in said[:3]] == [
        " the job commits its first iteration",
        f" a pod of pool {POOL} generates under the current weights",
        " the job is suspended and its pods are gone",
    ]
    assert [sorted(one) for one in job.changes] == [["suspend"], ["iterations", "suspend"]]
    assert (books.iterations_committed, books.epoch) == (job.spec["iterations"], 2)
    assert len(said) == 5


def test_a_pool_that_never_generated_fails_at_its_deadline() -> None:
    with pytest.raises(EnvironmentFault, match="generates under the current weights: not after 900 s"):
        prove(PlayedJob(helps_from=smoke.MANY))


def test_a_job_that_fails_is_not_waited_for() -> None:
    with pytest.raises(EnvironmentFault, match=r"the job has ended before that: .*Failed"):
        prove(PlayedJob(helps_from=smoke.MANY, fails_at=5))


def test_a_job_that_begins_anew_instead_of_going_on_is_found_out() -> None:
    with pytest.raises(EnvironmentFault, match="iterations from before it was suspended were lost"):
        prove(PlayedJob(loses=True))


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([], ""),
        ([segments(2, "smoke-hybrid-0", 2)], ""),
        ([segments(3, f"{POOL}-rollout-0", 2)], ""),
        ([segments(9, f"{POOL}-rollout-0", 9)], ""),
        ([segments(1, f"{POOL}-rollout-0", 1)], ""),
        ([segments(3, f"{POOL}-rollout-0", 3, 12), segments(3, "smoke-hybrid-0", 3, 4)], "12 of 16 segments"),
    ],
    ids=["nobody", "only the job", "old weights", "not committed", "no weights before it", "it helped"],
)
def test_only_segments_under_current_weights_in_a_committed_iteration_count(
    rows: list[PodSegments], found: str
) -> None:
    assert smoke.helped(report([1, 1, 1], *rows), POOL).startswith(found)
    assert bool(smoke.helped(report([1, 1, 1], *rows), POOL)) == bool(found)


@pytest.mark.parametrize(
    ("after", "wrong"),
    [
        (report([1, 1, 2]), []),
        (report([1, 1, 1]), ["no iteration was committed after it was resumed"]),
        (
            report([1, 1]),
            ["its 2 iterations are not those from 1 to 3", "no iteration was committed after it was resumed"],
        ),
        (report([2, 2, 2]), ["iterations from before it was suspended were lost"]),
        (report([1, 1, 2], trained_twice_in_a_pass=2), ["2 prompts were trained twice in a pass"]),
    ],
)
def test_the_books_must_agree_in_the_end(after: RunReport, wrong: list[str]) -> None:
    assert smoke.problems(report([1, 1]), after, 3) == wrong


@pytest.mark.parametrize(
    ("suspended", "phases", "expected"),
    [("True", [], True), ("True", ["Succeeded"], True), ("True", ["Running"], False), ("False", [], False)],
)
def test_a_job_has_stopped_when_it_says_so_and_no_pod_is_left(
    suspended: str, phases: list[str], expected: bool
) -> None:
    status = {"conditions": [{"type": "Suspended", "status": suspended}]}
    assert smoke.stopped({"status": status}, [{"status": {"phase": phase}} for phase in phases]) is expected


def test_the_job_and_its_pool_are_sound_resources() -> None:
    (job,) = smoke.endless(SAMPLE)
    assert SAMPLE[0]["spec"]["iterations"] == 2
    assert check(job)
    assert check(smoke.pool_of(job))
