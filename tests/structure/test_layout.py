"""The layout of design.md 6 and the alarms of design.md 7, as facts of the tree."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
ROOMS = {
    *("api", "records", "rpc", "arena", "coordination", "checkpoint", "trainer", "inference", "rollout", "reward"),
    *("replay", "sampling", "master", "sandbox", "telemetry", "client", "cli", "testing", "local"),
}
BAD_NAMES = {"utils", "util", "common", "misc", "manager", "helper", "helpers"}
# Files and functions that are longer than the alarm, each with its reason.
LONG_FILES: dict[str, str] = {
    "python/twinpod/api/resource_rules.py": "one table of rules; cut in two, neither half would say what it is",
    "python/twinpod/testing/fake_cluster.py": "one fake with one state",
    "tests/cluster/bad_manifests.py": "a table of manifests with the words that a person reads",
}
LONG_FUNCTIONS: dict[str, str] = {
    "python/twinpod/api/patch_rules.py:patch_rules": "a table of rules",
}
GENERATED = ("python/twinpod/rpc/v1/",)


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [TOP / name for name in listed if (TOP / name).is_file() and not name.startswith(GENERATED)]


@pytest.mark.parametrize("folder", ["operator", "sidecar", "python", "tests"])
def test_no_package_marker_shadows_the_standard_library(folder: str) -> None:
    assert not (TOP / folder / "__init__.py").exists()


def test_tests_have_no_package_markers_at_all() -> None:
    assert list((TOP / "tests").rglob("__init__.py")) == []


def test_every_room_is_one_that_the_design_names() -> None:
    there = {path.name for path in (TOP / "python/twinpod").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert there <= ROOMS


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert [path for path in tracked("*.py") if path.stem.lower() in BAD_NAMES] == []


def test_python_files_are_short_or_say_why() -> None:
    long = {}
    for path in tracked("*.py"):
        name, limit = str(path.relative_to(TOP)), 600 if "tests" in path.parts else 400
        lines = path.read_text().count("\n")
        if lines > limit and name not in LONG_FILES:
            long[name] = lines
    assert long == {}


def test_functions_are_short_or_say_why() -> None:
    long = {}
    for path in tracked("python/*.py", "operator/*.py", "sidecar/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{path.relative_to(TOP)}:{node.name}"
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > 60 and name not in LONG_FUNCTIONS:
                    long[name] = size
    assert long == {}


def test_every_module_opens_with_a_docstring() -> None:
    ours = tracked("python/*.py", "operator/*.py", "sidecar/*.py")
    assert [str(path) for path in ours if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_no_error_is_swallowed_in_silence() -> None:
    silent = []
    for path in tracked("python/*.py", "operator/*.py", "sidecar/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and all(isinstance(step, ast.Pass) for step in node.body):
                broad = node.type is None or (
                    isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
                )
                if broad:
                    silent.append(f"{path.relative_to(TOP)}:{node.lineno}")
    assert silent == []


def test_tests_do_not_sleep() -> None:
    sleep = re.compile(r"\btime\.sleep\(")
    cluster = TOP / "tests" / "cluster"  # a program that tests start; of its files only the tests are tests
    tests = [path for path in tracked("tests/*.py") if path.parent != cluster or path.name.startswith("test_")]
    assert [str(path) for path in tests if sleep.search(path.read_text()) and path != Path(__file__)] == []


PLACES = re.compile(
    r"(?<![\w.])(?<!target=)/(root|work|home/\w+)/[\w.]|/opt/wheels|https?://[^\s\"'<>)]*(pypi|simple|registry|mirror|proxy)[^\s]*"
)


def test_no_committed_file_names_this_machine_or_a_package_registry() -> None:
    found = {}
    for path in tracked():
        if path == Path(__file__) or path.suffix in (".png", ".sqlite"):
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        if hits := [found_at.group(0) for found_at in PLACES.finditer(text)]:
            found[str(path.relative_to(TOP))] = hits
    assert found == {}


def test_the_glossary_has_fewer_than_ten_words_and_the_code_uses_each() -> None:
    table = (TOP / "CONTRIBUTING.md").read_text().split("## Glossary", 1)[1]
    words = [row.split("|")[1].strip() for row in table.splitlines() if row.startswith("| ")][1:]
    assert 0 < len(words) < 10
    sources = "\n".join(path.read_text() for path in tracked("*.py") if "tests" not in path.parts)
    assert [word for word in words if word not in sources] == []
