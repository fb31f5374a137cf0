"""What `twinpod doctor` says of a machine on which a cluster is to be built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twinpod.cli import doctor, doctor_cluster
from twinpod.cli.__main__ import main
from twinpod.cli.finding import Finding


def test_json_tells_what_each_finding_is_needed_for(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    local = [entry for entry in told if entry["needed_for"] == "local mode"]
    assert code == (0 if all(entry["good"] for entry in local) else 1)
    assert {entry["name"] for entry in told if entry not in local} >= {"root", "go", "apt", "control groups"}


@pytest.mark.parametrize(
    ("finding", "good", "words"),
    [
        (doctor_cluster.root(0), True, "user 0"),
        (doctor_cluster.root(1000), False, "user 1000"),
        (doctor_cluster.memory(24 * 2**30), True, "24.0 GiB"),
        (doctor_cluster.memory(4 * 2**30), False, "12 wanted"),
        (doctor_cluster.go((1, 26)), True, "Go 1.26"),
        (doctor_cluster.go((1, 19)), True, "Go 1.19; 1.26 is fetched from PyPI"),
        (doctor_cluster.go(None), True, "no Go; 1.26 is fetched from PyPI"),
        (doctor_cluster.packages(True, ""), True, "a source of Debian bookworm"),
        (doctor_cluster.packages(False, ""), False, "no source of Debian bookworm"),
        (doctor_cluster.packages(False, "python:3.11-slim"), True, "images stand on python:3.11-slim"),
        (doctor_cluster.packages(None, ""), False, "no apt-get"),
    ],
)
def test_what_a_cluster_needs_is_told_with_the_way_to_mend_it(finding: Finding, good: bool, words: str) -> None:
    assert (finding.good, words in finding.what) == (good, True)
    assert good or finding.mend


@pytest.mark.parametrize(
    ("present", "words"),
    [("cpuset cpu io memory pids", "cgroup v2, with"), ("cpu memory pids", "cgroup v2, without cpuset")],
)
def test_control_groups_of_the_new_kind_are_looked_at(tmp_path: Path, present: str, words: str) -> None:
    (tmp_path / "cgroup.controllers").write_text(present)
    assert doctor_cluster.control_groups(tmp_path).what.startswith(words)


def test_control_groups_of_the_old_kind_are_looked_at(tmp_path: Path) -> None:
    for name in ("cpu", "cpuset", "memory"):
        (tmp_path / name).mkdir()
    finding = doctor_cluster.control_groups(tmp_path)
    assert (finding.good, finding.what) == (False, "cgroup v1, without pids")


def test_what_is_lacking_for_a_cluster_is_a_warning() -> None:
    bad = Finding(name="root", good=False, what="user 1000", mend="run it as root")
    assert list(doctor.lines([bad], "WARN")) == ["WARN root           user 1000", f"{'':20}mend: run it as root"]
