"""Commands that run side by side, told of on one terminal: lines as they end, and below them what runs now.

A command says with a line that ends in ` ...` what it has begun, or how far it is; every other line of its output is
passed on. On a terminal the last line tells of all commands and of the seconds that went by altogether; elsewhere such
a line comes once a minute.

Each command is a session of its own, so that whatever it has started (go, buildah, pip) ends with it. A terminal's
Ctrl-C therefore reaches only the one who waits here; on the way out it ends them all.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

TICK_S = 0.5
LINE_EVERY_S = 60.0
STOP_S, LOOK_S = 20.0, 0.05


@dataclass(slots=True)
class Part:
    """One command: its last beginning, and the rest of a line that is not whole yet."""

    process: subprocess.Popen[bytes]
    now: str = ""
    rest: str = ""

    def take(self, text: str) -> list[str]:
        """Lines to pass on; what has begun is remembered. Pure but for the part itself."""
        *lines, self.rest = (self.rest + text).split("\n")
        told = []
        for line in lines:
            if line.endswith(" ..."):
                self.now = " ".join(line.removesuffix(" ...").split())
            else:
                self.now = ""
                told.append(line)
        return told


def run_all(commands: Mapping[str, Sequence[str]], *, cwd: Path, title: str, out: TextIO = sys.stdout) -> str:
    """Until all have ended; the name of the first that failed (the others are ended then), or nothing."""
    began, said, terminal = time.monotonic(), 0.0, out.isatty()
    parts = {name: Part(_started(command, cwd)) for name, command in commands.items()}
    with selectors.DefaultSelector() as selector:
        for part in parts.values():
            assert part.process.stdout is not None
            os.set_blocking(part.process.stdout.fileno(), False)
            selector.register(part.process.stdout, selectors.EVENT_READ, part)
        lead = "\r\033[K" if terminal else ""
        try:
            while selector.get_map():
                for key, _ in selector.select(TICK_S):
                    _pass_on(selector, key, out, lead)
                passed = time.monotonic() - began
                status = (
                    f"{title} {passed:.0f} s in all; now: {', '.join(one.now for one in parts.values() if one.now)}"
                )
                if terminal:
                    out.write(lead + status[: _width(out)])
                elif passed - said >= LINE_EVERY_S:
                    said = passed
                    out.write(f"{status}\n")
                out.flush()
                if failed := next((name for name, part in parts.items() if part.process.poll()), ""):
                    for key in [key for key in selector.get_map().values() if key.data is parts[failed]]:
                        _pass_on(selector, key, out, lead)
                    return failed
            for part in parts.values():
                part.process.wait()
        finally:
            out.write(lead)
            out.flush()
            for part in parts.values():
                _end(part.process)
    return next((name for name, part in parts.items() if part.process.returncode), "")


def _started(command: Sequence[str], cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _pass_on(selector: selectors.BaseSelector, key: selectors.SelectorKey, out: TextIO, lead: str) -> None:
    """What a command has written by now; at its end it is looked at no more."""
    part: Part = key.data
    data = part.process.stdout.read() if part.process.stdout is not None else b""
    if data == b"":
        selector.unregister(key.fileobj)
    out.writelines(f"{lead}{line}\n" for line in part.take((data or b"").decode(errors="replace")))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends what still runs of its session, at last by force, and reaps it. One that ended well has left nothing."""
    try:
        if process.poll() != 0:
            _signal(process, signal.SIGTERM)
            deadline = time.monotonic() + STOP_S
            while (process.poll() is None or any(members(process.pid))) and time.monotonic() < deadline:
                time.sleep(LOOK_S)
    finally:  # also when somebody does not want to wait for that
        if process.poll() != 0:
            _signal(process, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the whole group; its number is the first process's, and nobody else's while one of them is there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def members(group: int) -> Iterator[int]:
    """Processes of a group that still run; one that only waits to be reaped does not."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it ended while we looked
                state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(its_group) == group and state not in "ZX":
                    yield int(folder.name)


def _width(out: TextIO) -> int:
    try:
        return os.get_terminal_size(out.fileno()).columns - 1
    except OSError:
        return 79
