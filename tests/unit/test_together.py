"""Commands side by side on one terminal, as `make demo` builds programs and images."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("tools_together", TOP / "tools/together.py")
assert _spec is not None
assert _spec.loader is not None
together = importlib.util.module_from_spec(_spec)
sys.modules["tools_together"] = together
_spec.loader.exec_module(together)


def run(**scripts: str) -> tuple[str, list[str]]:
    """The first that failed, and the lines that a log would have."""
    out = io.StringIO()
    commands = {name: ["sh", "-c", script] for name, script in scripts.items()}
    return together.run_all(commands, cwd=TOP, title="building", out=out), out.getvalue().splitlines()


def test_lines_of_all_are_passed_on_and_beginnings_are_only_told_of() -> None:
    failed, lines = run(one="echo 'one: a ...'; echo 'one: a done'", two="echo 'two: b ...'; echo 'two: b done' >&2")
    assert failed == ""
    assert sorted(line for line in lines if not line.startswith("building")) == ["one: a done", "two: b done"]


def test_the_first_that_fails_ends_the_others_and_is_named_after_its_last_words() -> None:
    failed, lines = run(slow="echo $$; exec sleep 60", wrong="sleep 0.2; echo 'it broke'; exit 3")
    assert failed == "wrong"
    assert "it broke" in lines
    with pytest.raises(ProcessLookupError):
        os.kill(int(lines[0] if lines[0].isdigit() else lines[1]), 0)


@pytest.mark.parametrize(
    ("text", "told", "now"),
    [
        ("images: torch   ...\n", [], "images: torch"),
        ("images: torch   ...\nimages: torch  9 s done\n", ["images: torch  9 s done"], ""),
        ("cluster: build   12 of 90 ...\nhalf a li", [], "cluster: build 12 of 90"),
    ],
)
def test_what_a_command_does_now_is_its_last_beginning(text: str, told: list[str], now: str) -> None:
    part = together.Part(process=None)
    assert (part.take(text), part.now) == (told, now)
