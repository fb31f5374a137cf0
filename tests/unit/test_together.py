"""Commands side by side on one terminal, as `make demo` builds programs and images."""

from __future__ import annotations

import importlib.util
import io
import signal
import subprocess
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


def alive(pid: int) -> bool:
    """Whether it runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_lines_of_all_are_passed_on_and_beginnings_are_only_told_of() -> None:
    failed, lines = run(one="echo 'one: a ...'; echo 'one: a done'", two="echo 'two: b ...'; echo 'two: b done' >&2")
    assert failed == ""
    assert sorted(line for line in lines if not line.startswith("building")) == ["one: a done", "two: b done"]


def test_the_first_that_fails_ends_the_others_and_is_named_after_its_last_words(tmp_path: Path) -> None:
    up = tmp_path / "up"
    failed, lines = run(
        slow=f"echo $$; touch {up}; exec sleep 60",
        wrong=f"until test -e {up}; do sleep 0.05; done; echo 'it broke'; exit 3",
    )
    assert failed == "wrong"
    assert "it broke" in lines
    (slow,) = (int(line) for line in lines if line.isdigit())
    assert not alive(slow)


def test_what_a_command_has_started_ends_with_it(tmp_path: Path) -> None:
    up = tmp_path / "up"
    failed, lines = run(
        slow=f"sleep 60 & echo $!; sleep 60 & echo $!; touch {up}; wait",
        wrong=f"until test -e {up}; do sleep 0.05; done; exit 3",
    )
    started = [int(line) for line in lines if line.isdigit()]
    assert (failed, len(started)) == ("wrong", 2)
    assert not any(alive(pid) for pid in started)


def test_what_a_failed_command_left_running_is_ended_too() -> None:
    failed, lines = run(wrong="sleep 60 >&- 2>&- & echo $!; exit 3")
    assert failed == "wrong"
    assert not any(alive(int(line)) for line in lines if line.isdigit())


def test_an_interrupt_ends_all_and_what_they_have_started() -> None:
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"  # background jobs ignore it
        f"from pathlib import Path; sys.path.insert(0, {str(TOP / 'tools')!r}); import together;"
        "together.run_all({'slow': ['sh', '-c', 'sleep 60 & echo $!; wait']}, cwd=Path(), title='building')"
    )
    with subprocess.Popen([sys.executable, "-u", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        assert done.stdout is not None
        started = next(int(line) for line in done.stdout if line.strip().isdigit())
        done.send_signal(signal.SIGINT)
        done.communicate()
    assert done.returncode not in (0, None)
    assert not alive(started)


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
