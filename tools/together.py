"""Commands that run side by side, told of on one terminal: lines as they end, and below them what runs now.

A command says with a line that ends in ` ...` what it has begun, or how far it is; every other line of its output is
passed on. On a terminal the last line tells of all commands and of the seconds that went by altogether; elsewhere such
a line comes once a minute.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

TICK_S = 0.5
LINE_EVERY_S = 60.0
STOP_S = 20.0


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
        command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def _pass_on(selector: selectors.BaseSelector, key: selectors.SelectorKey, out: TextIO, lead: str) -> None:
    """What a command has written by now; at its end it is looked at no more."""
    part: Part = key.data
    data = part.process.stdout.read() if part.process.stdout is not None else b""
    if data == b"":
        selector.unregister(key.fileobj)
    out.writelines(f"{lead}{line}\n" for line in part.take((data or b"").decode(errors="replace")))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends what still runs, and reaps it."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _width(out: TextIO) -> int:
    try:
        return os.get_terminal_size(out.fileno()).columns - 1
    except OSError:
        return 79
