"""TRL beside the demo: GRPOTrainer on the same task, in one process, against `reverse-keep` and `reverse-letters`.

TRL and accelerate are installed by this bench, at the versions of `constraints/bench.txt`, into a folder of their own
in the cache; everything else they need the environment has. The runs take turns, so that a slow hour of the machine
meets all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import runs
from tests.bench.report import TOP, Measure, Say, median, spread

from twinpod.errors import EnvironmentFault

PINS = TOP / "constraints" / "bench.txt"
SAMPLES = TOP / "manifests" / "samples"
FIRST = 6  # first iteration whose seconds count: caches are warm by then
WINDOW = 5  # iterations whose mean reward must reach the goal
GOAL = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One run: seconds and mean reward of each iteration, imports left out."""

    seconds: tuple[float, ...]
    rewards: tuple[float, ...]

    @property
    def iteration(self) -> float:
        """Seconds of a middling one."""
        return median(self.seconds[FIRST - 1 :])

    @property
    def to_goal(self) -> float:
        """Seconds until the mean reward of some iterations in a row is at the goal; nan when it never is."""
        spent = 0.0
        for number, seconds in enumerate(self.seconds, start=1):
            spent += seconds
            if number >= WINDOW and statistics.mean(self.rewards[number - WINDOW : number]) >= GOAL:
                return spent
        return float("nan")


def installed() -> Path:
    """The folder with TRL; makes it the first time."""
    cache = Path(os.environ.get("TWINPOD_CACHE") or Path.home() / ".cache" / "twinpod")
    folder = cache / f"bench-{hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]}"
    if not folder.exists():
        building = folder.with_suffix(f".{os.getpid()}")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(building),
            "-r",
            str(PINS),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(building, ignore_errors=True)
            raise EnvironmentFault(
                f"TRL cannot be installed: {done.stderr.strip()[-300:]}", where=str(PINS), mend="give pip an index"
            )
        building.rename(folder)
    return folder


def trl(manifest: Path, seed: int, iterations: int) -> Course:
    """One process of TRL, with as many threads as the machine has cores, which wait as ours do."""
    environment = {**os.environ, "PYTHONPATH": str(installed()), "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "tests.bench.trl_run", str(manifest), str(seed), str(iterations)]
    done = subprocess.run(command, cwd=TOP, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnvironmentFault(f"TRL ended with {done.returncode}: {done.stderr.strip()[-300:]}", where="bench of TRL")
    found = json.loads(done.stdout.splitlines()[-1])
    return Course(seconds=tuple(found["seconds"]), rewards=tuple(found["rewards"]))


def twinpod(name: str, seed: int, iterations: int, say: Say) -> Course:
    """One run of a sample."""
    done = runs.run(f"trl-{name}", SAMPLES / f"{name}.yaml", say, seed=seed, iterations=iterations, check=False)
    records = done.report.iterations
    return Course(
        seconds=tuple(record.seconds.total for record in records), rewards=tuple(record.reward for record in records)
    )


def measures(iterations: int, say: Say, seeds: Sequence[int] = (0,)) -> Iterable[Measure]:
    """`iterations` 0: the sample's hundred."""
    count = iterations or 100
    courses: dict[str, list[Course]] = {"trl": [], "reverse-keep": [], "reverse-letters": []}
    for place, seed in enumerate(seeds):
        courses["trl"].append(trl(SAMPLES / "reverse-letters.yaml", seed, count))
        say(f"TRL, seed {seed}: {courses['trl'][-1].iteration:.2f} s an iteration", (place + 0.3) / len(seeds))
        for name in ("reverse-keep", "reverse-letters"):
            courses[name].append(twinpod(name, seed, count, say))
    yardstick = [one.iteration for one in courses["trl"]]
    for key, name, bar in (
        ("iteration_over_trl", "reverse-keep", 0.8),
        ("iteration_restart_over_trl", "reverse-letters", 0.9),
    ):
        own = [one.iteration for one in courses[name]]
        note = f"{spread(own)} over TRL's {spread(yardstick)}"
        yield Measure(key=key, value=median(own) / median(yardstick), unit="ratio", at_most=bar, note=note)
    own, other = ([one.to_goal for one in courses[name]] for name in ("reverse-keep", "trl"))
    note = f"seconds to reward {GOAL}, imports left out: {spread(own)} over TRL's {spread(other)}"
    yield Measure(key="reward_09_over_trl", value=median(own) / median(other), unit="ratio", at_most=0.65, note=note)
