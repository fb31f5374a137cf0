"""The command line: what a person types, sees and gets as exit code."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from twinpod.api.load import load_manifest
from twinpod.cli import doctor, live, outcome
from twinpod.cli.__main__ import main, parser
from twinpod.cli.inspect import lines_of
from twinpod.cli.progress import Seen, read_progress
from twinpod.cli.run import finished, overridden, resume_options
from twinpod.cli.words import duration, number
from twinpod.errors import InputError
from twinpod.local.folder import RunFolder
from twinpod.records.run import IterationRecord, NamedCount, PhaseSeconds, Progress, RunReport

SAMPLE = Path(__file__).resolve().parents[2] / "manifests/samples/reverse-letters.yaml"
SECONDS = PhaseSeconds(generate=2.0, train=1.0, weights=0.5, switch=0.25, snapshot=0.0, other=0.25)


def committed(iteration: int, reward: float) -> IterationRecord:
    return IterationRecord(
        iteration=iteration, line=1, epoch=1, version=iteration + 1, snapshot="", groups=32, samples=512, reward=reward,
        right=0.5, length=5.5, tokens_generated=3000, tokens_trained=3000, loss=0.1, weights_gap=1e-7, stats="",
        seconds=SECONDS, committed_at=float(iteration), rolled_back=False,
    )  # fmt: skip


def under_way(state: str = "Running", message: str = "") -> Progress:
    return Progress(
        state=state, epoch=1, iteration=3, iterations=100, version=3, phase="rollout", since=0.0, groups_finished=5,
        groups_wanted=32, reward=0.4, right=0.1, length=5.5, tokens_per_s=1500.0, seconds=SECONDS,
        waiting_for="engine of j-hybrid-0", eta_s=200.0, message=message, updated=1.0,
    )  # fmt: skip


def text_of(seen: Seen | None, notes: tuple[str, ...] = ()) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(live.picture_of("reverse-letters", seen, notes, 12.0))
    return console.export_text()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4.4, "4 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (math.nan, "-")],
)
def test_durations_are_told_as_a_person_would(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_an_unknown_number_is_a_dash() -> None:
    assert number(math.nan, 3) == "-"
    assert number(0.12345, 3) == "0.123"


def test_a_run_must_say_where_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", str(SAMPLE)])
    assert ended.value.code == 2
    assert "--local" in capsys.readouterr().err


def test_a_missing_manifest_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "no-such-file.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("twinpod: no-such-file.yaml: does not exist")
    assert said.count("\n") == 1


def test_a_misspelt_field_is_named_with_its_neighbour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "job.yaml"
    wrong.write_text(SAMPLE.read_text().replace("groupSize", "groupSzie"))
    assert main(["validate", str(wrong)]) == 2
    said = capsys.readouterr().err
    assert "groupSzie" in said
    assert "groupSize" in said


def test_verbose_shows_where_an_error_comes_from() -> None:
    with pytest.raises(InputError):
        main(["validate", "no-such-file.yaml", "-v"])


def test_the_sample_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(SAMPLE)]) == 0
    assert "RLJob reverse-letters is valid" in capsys.readouterr().out


def test_float32_on_accelerators_is_valid_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = SAMPLE.read_text()
    for dtype, warned in (("float32", True), ("bfloat16", False)):
        job = tmp_path / f"{dtype}.yaml"
        with_one = text.replace("  hybrid:\n", "  hybrid:\n    accelerators: 1\n")
        job.write_text(with_one.replace("  model:\n", f"  model:\n    dtype: {dtype}\n"))
        assert main(["validate", str(job)]) == 0
        said = capsys.readouterr()
        assert "is valid" in said.out
        assert ("warning: reverse-letters: spec.model.dtype: float32 on accelerators" in said.err) == warned


def test_every_document_of_a_file_is_validated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = SAMPLE.with_name("pool.yaml")
    assert main(["validate", str(pool)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{pool}: RLJob pool is valid",
        f"{pool}: RolloutPool helpers is valid",
    ]
    wrong = tmp_path / "wrong.yaml"
    text = pool.read_text().replace("groupSize: 16", "groupSize: 1").replace("replicas: 0", "replicas: -1")
    wrong.write_text(text)
    assert main(["validate", str(wrong)]) == 2
    said = capsys.readouterr().err
    assert "document at line 1: spec.algorithm.groupSize: is 1" in said
    second = text.splitlines().index("---") + 1
    assert f"document at line {second}: spec.replicas: is -1" in said


def test_a_line_of_a_later_document_has_the_number_that_it_has_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(f"{SAMPLE.read_text()}---\nkind: RolloutPool\nkind: RolloutPool\n")
    assert main(["validate", str(wrong)]) == 2
    lines = len(SAMPLE.read_text().splitlines())
    assert f"document at line {lines + 1}: line {lines + 3}: kind stands twice" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "status", "logs"])
def test_a_folder_that_is_no_run_is_refused(command: str, tmp_path: Path) -> None:
    assert main([command, str(tmp_path)]) == 2


def test_an_unfinished_run_cannot_be_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.json").write_text("{}")
    assert main(["export", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "has not been exported" in capsys.readouterr().err


def test_an_export_is_copied_whole(tmp_path: Path) -> None:
    export = RunFolder(tmp_path / "run").export
    export.mkdir(parents=True)
    (export / "config.json").write_text("{}")
    (tmp_path / "run/job.json").write_text("{}")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/config.json").read_text() == "{}"
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 2


def test_logs_of_a_pod_are_found_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/j-master.master.log").write_text("one\ntwo\n")
    (tmp_path / "pods/j-hybrid-0/run").mkdir(parents=True)
    (tmp_path / "pods/j-hybrid-0/run/engine.log").write_text("three\n")
    assert main(["logs", str(tmp_path), "j-master", "--lines", "1"]) == 0
    assert capsys.readouterr().out == "==> j-master.master <==\ntwo\n"
    assert main(["logs", str(tmp_path), "j-hybrid-0.engine"]) == 0
    assert "three" in capsys.readouterr().out
    assert main(["logs", str(tmp_path), "nobody"]) == 2


def test_the_command_line_overrides_the_manifest() -> None:
    job = overridden(load_manifest(SAMPLE), seed=7, iterations=3)
    assert (job.spec.seed, job.spec.iterations) == (7, 3)


def test_an_override_is_checked_like_the_manifest() -> None:
    with pytest.raises(InputError) as refused:
        overridden(load_manifest(SAMPLE), seed=None, iterations=0)
    assert "iterations" in str(refused.value)


def test_the_way_back_into_a_run_repeats_its_options() -> None:
    arguments = parser().parse_args(["run", "x.yaml", "--local", "--out", "there", "--iterations", "5"])
    assert resume_options(arguments) == ["--out", "there", "--iterations", "5"]


def test_a_fresh_folder_is_not_finished(tmp_path: Path) -> None:
    assert finished(load_manifest(SAMPLE), RunFolder(tmp_path)) is False


def test_books_that_do_not_exist_yet_are_no_error(tmp_path: Path) -> None:
    assert read_progress(tmp_path / "books.sqlite") is None


def test_the_live_picture_says_what_it_waits_for_and_how_long() -> None:
    said = text_of(Seen(progress=under_way(), iterations=(committed(1, 0.2), committed(2, 0.4))))
    for words in ("iteration 3 of 100", "5/32 groups", "waiting for engine of j-hybrid-0", "left 3 min 20 s", "0.400"):
        assert words in said
    assert "4.00" in said  # seconds of an iteration


def test_the_live_picture_shows_trouble_and_notes() -> None:
    seen = Seen(progress=under_way("Degraded", "etcd does not answer"), iterations=())
    said = text_of(seen, ("j-master/master ended with exit code 1",))
    assert "degraded" in said
    assert "etcd does not answer" in said
    assert "ended with exit code 1" in said


def test_before_the_master_the_live_picture_says_so() -> None:
    assert "starting" in text_of(None)


def test_a_plain_line_tells_the_whole_iteration() -> None:
    line = live.plain_line(committed(2, 0.4), under_way())
    assert line.startswith("iteration 2/100: reward 0.400, right 0.500, length 5.5, 4.0 s (generate 2.0, train 1.0")
    assert line.endswith("left 3 min 20 s")


def test_the_summary_has_its_stable_keys() -> None:
    records = tuple(committed(number, number / 10) for number in range(1, 8))
    summary = outcome.summarise(load_manifest(SAMPLE), records, 0.98, 61.0)
    assert set(summary) == {"iterations", "reward", "exactMatch", "seconds", "phaseSeconds", "seed"}
    assert summary["reward"] == pytest.approx(0.5)
    assert summary["phaseSeconds"]["generate"] == pytest.approx(14.0)
    assert summary["seconds"] == 61.0


def test_a_summary_without_numbers_has_nulls() -> None:
    summary = outcome.summarise(load_manifest(SAMPLE), (), math.nan, 1.0)
    assert json.loads(json.dumps(summary))["reward"] is None
    assert summary["exactMatch"] is None


def test_inspect_tells_what_must_be_zero() -> None:
    report = RunReport(
        job="j", state="Succeeded", epoch=1, line=1, iterations_committed=1, iterations_rolled_back=0, resumes=0,
        reward_last_5=0.4, right_last_5=0.1, trajectories=(NamedCount(name="trained", count=512),), groups=(),
        prompts_trained=32, prompts_by_times_trained=(), trained_twice_in_a_pass=0, segments=512, tokens=3000,
        trajectories_archived=0,
        pods=(NamedCount(name="j-hybrid-0", count=512),), pods_by_iteration=(),
        trajectories_spanning_versions=0, trajectories_by_versions=(), duplicate_tokens=0, chains_broken=0, versions=(),
        counters=(), settings_changes=(),
        seconds=SECONDS, iterations=(committed(1, 0.4),), evaluations=(), progress=None,
    )  # fmt: skip
    said = "\n".join(lines_of(report))
    assert "trained twice in one pass: 0" in said
    assert "stored twice: 0, broken chains: 0" in said
    assert "trained: 512" in said
    assert "by pod: j-hybrid-0: 512" in said


@pytest.mark.parametrize("look", doctor.LOOKS, ids=lambda look: look.__name__)
def test_every_finding_of_the_doctor_has_a_remedy_when_it_is_bad(look: doctor.Look) -> None:
    finding = look()
    assert finding.what
    assert finding.good or finding.mend


def test_the_doctor_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) in (0, 1)
    assert {entry["name"] for entry in json.loads(capsys.readouterr().out)} >= {"python", "etcd", "namespaces", "disk"}
