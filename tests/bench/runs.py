"""One run of a job in local mode, by the command that a user types, and what its folder says afterwards."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.report import TOP, Say

from twinpod.errors import EnvironmentFault
from twinpod.master.inspect import inspect
from twinpod.records.run import RunReport

FOLDER = TOP / "runs" / "bench"  # one folder a run; an older one of the same name is removed
ITERATION = re.compile(r"iteration (\d+)/(\d+): reward (\S+), .*?, (\d+\.\d) s ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that succeeded."""

    folder: Path
    summary: dict[str, Any]  # summary.json
    report: RunReport


def run(name: str, manifest: Path, say: Say, *, seed: int = 0, iterations: int = 0, check: bool = True) -> Finished:
    """`twinpod run MANIFEST --local` into a fresh folder. EnvironmentFault with the last lines when it fails.

    `iterations` 0: the manifest's own. `check`: answer the held-out prompts with the exported model in the end.
    """
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "twinpod.cli", "run", str(manifest), "--local", "--no-live"]
    command += ["--out", str(folder), "--seed", str(seed)]
    command += ["--iterations", str(iterations)] if iterations else []
    command += [] if check else ["--no-check"]
    with subprocess.Popen(
        command, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            last = _follow(process.stdout, say)
        except BaseException:
            process.terminate()  # it ends all its processes, and `with` waits for it
            raise
    if process.returncode:
        raise EnvironmentFault(
            f"ended with {process.returncode}: {' | '.join(last)}",
            where=f"run {name}",
            mend=f"read the logs in {folder}",
        )
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return Finished(folder=folder, summary=summary, report=inspect(folder))


def _follow(lines: Any, say: Say) -> list[str]:
    """Tells every tenth of the run; returns the last lines."""
    last: list[str] = []
    for line in lines:
        last = [*last[-4:], line.strip()]
        if found := ITERATION.match(line):
            number, count = int(found[1]), int(found[2])
            if number % max(1, count // 10) == 0:
                say(f"iteration {number} of {count}, reward {found[3]}, {found[4]} s", number / count)
    return last
