"""Steps that a person waits for: each with its progress and seconds, and a log that is named when it fails."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from tests.cluster.layout import ClusterFault

TICK_S = 0.5
LINE_EVERY_S = 20.0  # where no terminal can show a moving line
LOG_LINES = 15


class Steps:
    """Runs steps one after the other. `logs`: folder that takes one log a step."""

    def __init__(self, logs: Path, out: TextIO = sys.stderr) -> None:
        self._logs, self._out = logs, out
        logs.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        name: str,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        lines_expected: int = 0,
    ) -> None:
        """Run a command with its output in a log; with `lines_expected`, its lines are the progress.

        ClusterFault with the log's place if it fails.
        """
        log = self._logs / ("".join(c if c.isalnum() else "-" for c in name) + ".log")
        with open(log, "wb") as file:
            process = subprocess.Popen(
                command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        try:
            self.wait(name, lambda: process.poll() is not None, lambda: _lines(log, lines_expected))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode != 0:
            self._say(f"cluster: {name}  FAILED\n")
            for line in log.read_text(errors="replace").splitlines()[-LOG_LINES:]:
                self._say(f"    {line}\n")
            raise ClusterFault(f"step '{name}' failed with exit code {process.returncode}; the whole log is {log}")

    def wait(
        self, name: str, done: Callable[[], bool], progress: Callable[[], str] = str, tick_s: float = TICK_S
    ) -> None:
        """Show a step until `done`; it may raise. `progress`: a few words, asked for every tick."""
        began, terminal, shown = time.monotonic(), self._out.isatty(), -LINE_EVERY_S
        while not done():
            passed = time.monotonic() - began
            if terminal:
                self._say(f"\r\033[Kcluster: {name:<38} {passed:5.0f} s  {progress()}")
            elif passed - shown >= LINE_EVERY_S:
                shown = passed
                self._say(f"cluster: {name:<38} {passed:5.0f} s  {progress()} ...\n")
            time.sleep(tick_s)
        lead = "\r\033[K" if terminal else ""
        self._say(f"{lead}cluster: {name:<38} {time.monotonic() - began:5.1f} s  done\n")

    def _say(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _lines(log: Path, expected: int) -> str:
    if not expected:
        return ""
    done = log.read_bytes().count(b"\n")
    return f"{done} of {expected} packages"
