"""`make soak`: kill -9 of random processes of a run at random moments, for as long as you like.

    python -m tests.bench.soak [--minutes 30] [--seed 0] [--life-cycle Restart]

Like tests/flow/test_survival.py, but the dice say who dies, in which phase or after how many seconds, and whether the
run may recover before the next one dies. The same seed throws the same dice; the machine keeps its own time. Afterwards
the run is ordered to its end, and a table tells who was hit when, with the median seconds to the next commit. Exit code
1, and the run's folder is kept, when something was lost, done twice, left behind, or did not mend itself.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.flow.survival_books import faults_of
from tests.flow.survival_hunt import Hunt, exists, table
from tests.flow.survival_scene import Moment, Process, Run, leftovers, until

FAR = 1_000_000  # iterations: the clock says when it is enough
MORE = 5  # iterations after the last kill
LONGEST_S = 15.0  # between a recovery and a kill that waits for no phase
TARGETS = [
    (process, moment)
    for process in Process
    for moment in Moment
    if moment is not Moment.FINISH and exists(process, moment)
]


def throw(hunt: Hunt, dice: random.Random) -> None:
    """One kill: two of three in a phase, the others at any time; three of four are let recover."""
    recover = dice.random() < 0.75
    if dice.random() < 0.67:
        process, moment = dice.choice(TARGETS)
        hunt.hit(process, moment, recover=recover)
    else:
        hunt.hit_after(dice.choice(list(Process)), dice.uniform(0.0, LONGEST_S), recover=recover)


def soak(run: Run, minutes: float, dice: random.Random) -> list[str]:
    """Kills until the time is over, then the end of the run; what is wrong, one line each."""
    run.start(FAR)
    hunt = Hunt(run, FAR, say=lambda line: print(line, flush=True))
    until_s = time.monotonic() + 60.0 * minutes
    try:
        while time.monotonic() < until_s and not hunt.troubles:
            throw(hunt, dice)
        hunt.order(hunt.iteration() + MORE)
        code = hunt.finish()
    finally:
        run.close()
        print(f"\n{table(hunt.kills)}\n{len(hunt.kills)} kills, {run.starts} starts by hand")
    until(lambda: not leftovers(run.folder), 10.0)
    faults = [*hunt.troubles, *(f"left behind: {line}" for line in leftovers(run.folder))]
    return [*faults, *faults_of(run.folder, hunt.iterations), *([f"exit code {code}"] if code else [])]


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description="random kill -9 of a small run")
    parser.add_argument("--minutes", type=float, default=30.0, help="of killing (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the dice and of the run (default 0)")
    parser.add_argument("--life-cycle", default="Restart", choices=("Restart", "Keep"), help="of the engine")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="twinpod-soak-"))
    run = Run(folder / "soak", life_cycle=asked.life_cycle, seed=asked.seed)
    faults = soak(run, asked.minutes, random.Random(asked.seed))
    if faults:
        print("\n".join(["soak: FAILED", *faults, f"the run is in {run.folder}, what it printed in {run.output}"]))
        return 1
    shutil.rmtree(folder)
    print("soak: nothing lost, nothing done twice, nothing left behind")
    return 0


if __name__ == "__main__":
    sys.exit(main())
