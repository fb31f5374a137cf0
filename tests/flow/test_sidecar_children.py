"""Child processes: how they end, what they leave, and that none outlives its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from twinpod.errors import EnvironmentFault
from twinpod_sidecar.children import Children, ChildSpec, children_of, exit_reason, last_line


def spec(folder: Path, code: str) -> ChildSpec:
    return ChildSpec(name="child", argv=(sys.executable, "-c", code), env=dict(os.environ), log=folder / "child.log")


@pytest.fixture
def children() -> Children:
    return Children()


SAYS = "print('up', flush=True); "
FOREVER = "import signal; signal.pause()"


async def up(folder: Path) -> None:
    """Until the child has said so."""
    async with asyncio.timeout(20):
        while "up" not in last_line(folder / "child.log"):
            await asyncio.sleep(0.01)


async def test_an_exit_is_told_with_its_last_words(children: Children, tmp_path: Path) -> None:
    ended = await children.start(spec(tmp_path, "import sys; sys.exit('no such model')")).wait()
    assert (ended.status, ended.reason) == (1, "child exited with code 1; its last words: no such model")


async def test_a_child_that_obeys_ends_by_sigterm(children: Children, tmp_path: Path) -> None:
    child = children.start(spec(tmp_path, SAYS + FOREVER))
    await up(tmp_path)
    assert (await child.stop(20)).status == -signal.SIGTERM


async def test_a_child_that_does_not_obey_is_killed_after_its_grace(children: Children, tmp_path: Path) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    child = children.start(spec(tmp_path, deaf + SAYS + "\nwhile True: signal.pause()"))
    await up(tmp_path)
    assert (await child.stop(0.1)).status == -signal.SIGKILL


async def test_grandchildren_of_the_group_are_gone_with_their_parent(children: Children, tmp_path: Path) -> None:
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {FOREVER!r}]); " + SAYS
    child = children.start(spec(tmp_path, code))
    await child.wait()
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)


async def test_grandchildren_with_sessions_of_their_own_are_ended_as_orphans(
    children: Children, tmp_path: Path
) -> None:
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {FOREVER!r}], start_new_session=True)"
    await children.start(spec(tmp_path, code)).wait()
    assert len(children_of(os.getpid())) == 1
    await children.end_orphans()
    assert children_of(os.getpid()) == []


async def test_stop_all_ends_everything_at_the_same_time(children: Children, tmp_path: Path) -> None:
    for _ in range(3):
        children.start(spec(tmp_path, FOREVER))
    await children.stop_all(20)
    assert children_of(os.getpid()) == []


async def test_a_child_that_cannot_be_logged_is_one_line(children: Children, tmp_path: Path) -> None:
    (tmp_path / "child.log").mkdir()
    with pytest.raises(EnvironmentFault, match="child cannot be started: Is a directory"):
        children.start(spec(tmp_path, FOREVER))


def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import asyncio, os
from pathlib import Path
from tests.flow.test_sidecar_children import *
async def main():
    child = Children().start(spec(Path({str(tmp_path)!r}), SAYS + FOREVER))
    await up(Path({str(tmp_path)!r}))
    print(child.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    top = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=top, env={**os.environ, "PYTHONPATH": str(top)}
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while _lives(pid):
        assert time.monotonic() < deadline


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("status", "oom", "words"),
    [
        (0, False, "exited with code 0"),
        (0, True, "exited with code 0"),
        (3, True, "exited with code 3 after the container ran out of memory (OOM); raise its memory limit"),
        (-9, False, "was killed by SIGKILL"),
        (-9, True, "was killed by the kernel because the container ran out of memory (OOM); raise its memory limit"),
        (-11, False, "was killed by SIGSEGV"),
        (-35, False, "was killed by signal 35"),
    ],
)
def test_an_exit_status_in_words(status: int, oom: bool, words: str) -> None:
    assert exit_reason(status, oom=oom) == words


def test_our_own_last_line_says_more_than_a_launcher_s(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("noise\ntwinpod.trainer: cannot\nTraceback of torchrun\n====\n\n")
    assert last_line(log) == "twinpod.trainer: cannot"
    log.write_text("twinpod.trainer FAILED\n exitcode : -9\n  traceback : Signal 9 (SIGKILL) received by PID 15\n==\n")
    assert last_line(log) == "traceback : Signal 9 (SIGKILL) received by PID 15"
    log.write_text("noise\n\n")
    assert last_line(log) == "noise"
    assert last_line(tmp_path / "none") == ""
