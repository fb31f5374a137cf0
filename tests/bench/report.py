"""What a bench leaves behind: a table, a JSON file that others read, an exit code; and lines with the time left.

`results/NAME.json` is {"machine": {...}, "commit": "...", "measures": {KEY: {"value", "unit", "bar", "ok"}}}. A measure
without a bar has `"bar": null` and `"ok": true`. A value that could not be measured is null and not ok.
"""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

TOP = Path(__file__).resolve().parents[2]  # of the checkout
RESULTS = TOP / "tests" / "bench" / "results"
Say = Callable[[str, float], None]
"""Tells a person what was just measured, and which share of the part is done (see `Progress.say`)."""
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number. At most one of the bars is given; nan: it could not be measured."""

    key: str
    value: float
    unit: str
    note: str = ""  # for people: what it was made of; only in the table
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bar(self) -> float | None:
        """What the value is compared with; None where there is no bar."""
        return self.at_least if self.at_least is not None else self.at_most

    @property
    def ok(self) -> bool:
        """Whether the bar is met; a number that is missing never is."""
        if math.isnan(self.value):
            return False
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)


def end_in_order() -> None:
    """SIGTERM becomes the exception that Ctrl-C is, so that what a bench has started ends with it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def median(values: Sequence[float]) -> float:
    """nan of nothing."""
    return statistics.median(values) if values else math.nan


def spread(values: Sequence[float], unit: str = " s") -> str:
    """The range that a median comes from, for a measure's note."""
    return f"{min(values):.3g} to {max(values):.3g}{unit}, {len(values)} times" if values else "not measured"


def finish(name: str, measures: Sequence[Measure], *, save: bool = True, part: bool = False) -> int:
    """Prints the table, writes `results/NAME.json` (when `save`), returns the exit code: 1 when a bar is missed.

    A `part` of a long bench that was measured again takes its place beside what the file has of the others; the file's
    machine and commit are then those of the newest part.
    """
    console.print(_table(name, measures))
    missed = [measure.key for measure in measures if not measure.ok]
    if save:
        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"{name}.json"
        document = _document(measures)
        if part and path.exists():
            document["measures"] = json.loads(path.read_text(encoding="utf-8"))["measures"] | document["measures"]
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        console.print(f"{name}: written to {path.relative_to(TOP)}", markup=False)
    else:
        console.print(f"{name}: not the whole bench, so nothing is written to {RESULTS.relative_to(TOP)}", markup=False)
    console.print(f"{name}: {'missed: ' + ', '.join(missed) if missed else 'every bar is met'}", markup=False)
    return 1 if missed else 0


def _document(measures: Sequence[Measure]) -> dict[str, Any]:
    return {
        "machine": machine(),
        "commit": commit(),
        "measures": {
            measure.key: {
                "value": None if math.isnan(measure.value) else measure.value,
                "unit": measure.unit,
                "bar": measure.bar,
                "ok": measure.ok,
            }
            for measure in measures
        },
    }


def _table(name: str, measures: Sequence[Measure]) -> Table:
    table = Table(title=name, box=None, pad_edge=False, header_style="dim", title_justify="left")
    for column, side in (("measure", "left"), ("value", "right"), ("unit", "left"), ("bar", "right"), ("", "left")):
        table.add_column(column, justify=side, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("", overflow="fold", style="dim")
    for measure in measures:
        bar = "" if measure.bar is None else f"{'≥' if measure.at_least is not None else '≤'} {measure.bar:g}"
        verdict = "" if measure.bar is None and measure.ok else "[green]ok[/]" if measure.ok else "[red]missed[/]"
        shown = (
            "?"
            if math.isnan(measure.value)
            else f"{measure.value:.3g}"
            if measure.value < 1000
            else f"{measure.value:.0f}"
        )
        table.add_row(measure.key, shown, measure.unit, bar, verdict, measure.note)
    return table


def machine() -> dict[str, object]:
    """What the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memoryGiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 1),  # of the last minute, when the table was written
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: _release(name) for name in ("torch", "sglang", "megatron-core", "transformers")},
    }


def _release(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"


def commit() -> str:
    """The checkout's commit; `-dirty` when files differ from it, results of benches apart."""
    head = _git("rev-parse", "HEAD") or "unknown"
    changed = [line for line in _git("status", "--porcelain").splitlines() if "tests/bench/results/" not in line]
    return f"{head}-dirty" if changed else head


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=TOP, capture_output=True, text=True, check=False)
    return done.stdout.strip()


class Progress:
    """Lines that say what is measured and how long the rest takes.

    `parts`: seconds that each part is expected to take on the reference machine, in order. The estimate is scaled by
    how long the finished parts really took.
    """

    def __init__(self, name: str, parts: dict[str, float]) -> None:
        self._name, self._parts = name, parts
        self._began = self._part_began = time.monotonic()
        self._done: list[str] = []
        self._part = ""

    def part(self, name: str) -> None:
        """The next part begins."""
        if self._part:
            self._done.append(self._part)
        self._part, self._part_began = name, time.monotonic()
        self.say("begins")

    def say(self, what: str, share: float = 0.0) -> None:
        """A line about the part under way, of which `share` (0 to 1) is done."""
        left = self.left_s(share)
        console.print(f"{self._name}: {self._part}: {what}; about {_duration(left)} left", markup=False)

    def left_s(self, share: float) -> float:
        """Seconds to the end of the bench."""
        now = time.monotonic()
        expected = sum(self._parts[name] for name in self._done)
        pace = (self._part_began - self._began) / expected if expected else 1.0
        if share > 0:
            rest = (now - self._part_began) / share * (1 - share)
        else:
            rest = self._parts[self._part] * pace
        later = [name for name in self._parts if name not in self._done and name != self._part]
        return rest + pace * sum(self._parts[name] for name in later)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
