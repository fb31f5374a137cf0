"""What the tree promises about itself: imports, verbs, pins."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

TOP = Path(__file__).resolve().parents[2]


def verbs() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):.*## ", (TOP / "Makefile").read_text(), re.MULTILINE))


def pins() -> dict[str, str]:
    lines = [
        line.strip()
        for name in ("python.txt", "sglang.txt")
        for line in (TOP / "constraints" / name).read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    pairs = [line.split("==") for line in lines]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def imported_by(program: str) -> set[str]:
    code = f"import sys; {program}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_contracts_hold() -> None:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", program], cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_verb_of_the_makefile_is_explained_in_contributing() -> None:
    text = (TOP / "CONTRIBUTING.md").read_text()
    assert {verb for verb in verbs() if f"`make {verb}`" not in text} == set()


def test_contributing_names_no_verb_that_does_not_exist() -> None:
    assert set(re.findall(r"`make ([a-z-]+)`", (TOP / "CONTRIBUTING.md").read_text())) <= verbs()


def test_the_readme_names_the_two_commands() -> None:
    text = (TOP / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text


def test_every_dependency_is_met_by_a_pin() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    known, wrong = pins(), []
    for text in wanted:
        requirement = Requirement(text)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name not in known or known[name] not in requirement.specifier:
            wrong.append(text)
    assert wrong == []


def test_the_command_line_starts_without_heavy_imports() -> None:
    assert imported_by("import twinpod.cli.__main__ as m; m.parser()") & {"torch", "grpc", "rich", "pydantic"} == set()


def test_the_run_command_imports_no_torch() -> None:
    assert imported_by("import twinpod.cli.run, twinpod.local") & {"torch", "sglang", "transformers"} == set()
