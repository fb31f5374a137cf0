"""What the books of a run must say after all its deaths."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from pathlib import Path

from tests.flow.survival_scene import PROMPTS

from twinpod.master.inspect import inspect
from twinpod.records.run import RunReport


def count_faults(report: RunReport, iterations: int) -> list[str]:
    """Iterations that are missing or committed twice, and numbers that must be 0."""
    faults = []
    numbers = [one.iteration for one in report.iterations]
    if numbers != list(range(1, iterations + 1)):
        faults.append(f"{iterations} iterations were ordered, committed are {numbers}")
    names = ("trained_twice_in_a_pass", "duplicate_tokens", "chains_broken")
    faults += [f"{name} is {getattr(report, name)}" for name in names if getattr(report, name)]
    if report.state != "Succeeded":
        faults.append(f"the run is {report.state}")
    return faults


def prompt_faults(books: Path) -> list[str]:
    """Prompts that are trained twice in a pass, or neither trained nor under way in a pass that has been opened to its
    end; commits that do not have the groups that they say.
    """
    with contextlib.closing(sqlite3.connect(f"file:{books}?mode=ro", uri=True)) as db:
        trained = db.execute("SELECT prompt_id, pass FROM trained WHERE rolled_back = 0").fetchall()
        living = db.execute("SELECT prompt_id, pass FROM groups WHERE state IN ('open', 'finished')").fetchall()
        begun = db.execute("SELECT DISTINCT prompt_id, pass FROM groups").fetchall()
        commits = db.execute(
            "SELECT i.iteration, i.groups, (SELECT count(*) FROM trained t WHERE t.iteration = i.iteration AND"
            " t.rolled_back = 0) FROM iterations i WHERE i.rolled_back = 0"
        ).fetchall()
    faults = [f"prompt {one[0]} was trained {n} times in pass {one[1]}" for one, n in Counter(trained).items() if n > 1]
    last = max((number for _, number in begun), default=0)
    due = {(prompt, number) for number in range(last) for prompt in range(PROMPTS)} | set(begun)
    faults += [f"prompt {prompt} was lost in pass {number}" for prompt, number in sorted(due - {*trained, *living})]
    faults += [f"both trained and under way: {one}" for one in sorted({*trained} & {*living})]
    faults += [f"iteration {number} says {said} groups, has {has}" for number, said, has in commits if said != has]
    return faults


def faults_of(folder: Path, iterations: int) -> list[str]:
    """Everything that is wrong with a run that is over."""
    return count_faults(inspect(folder), iterations) + prompt_faults(folder / "state/books.sqlite")
