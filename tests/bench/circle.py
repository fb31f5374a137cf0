"""`make bench`: what the circle costs apart from generating and training, as a table and `results/circle.json`.

`python -m tests.bench.circle --only load --repeats 2` measures a part of it, quickly, and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from tests.bench import report
from tests.bench.report import Measure, Progress, Say, median, spread

SECONDS = {"publish": 25.0, "load": 60.0, "fetch": 30.0, "switch": 150.0, "rollout": 120.0, "overhead": 90.0}
OVERHEAD_ITERATIONS = 11  # the first, while everything is loaded and faulted in, is left out
LEAST_REPEATS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of the bench. `measure(repeats, say)`."""

    name: str
    measure: Callable[[int, Say], Iterable[Measure]]


def publish(repeats: int, say: Say) -> Iterable[Measure]:
    """Live parameters to a fetchable version."""
    from tests.bench import publish as bench

    found = bench.measure(repeats)
    say(f"publish {found.seconds:.2f} s, memcpy {found.memcpy:.2f} s", 1.0)
    yield Measure(
        key="publish_over_memcpy",
        value=found.memcpy / found.seconds,
        unit="ratio",
        at_least=0.4,
        note=f"{found.nbytes / 1e9:.2f} GB, {found.tensors} tensors, {found.threads} threads: {found.seconds:.2f} s,"
        f" memcpy {found.memcpy:.2f} s",
    )


def load(repeats: int, say: Say) -> Iterable[Measure]:
    """The same weights into a real engine, by three ways."""
    from tests.bench import load as bench

    found = bench.measure(repeats, say)
    ours, disk, bucket = median(found.ours), median(found.disk), median(found.bucket)
    yield Measure(
        key="load_over_from_disk",
        value=disk / ours,
        unit="ratio",
        at_least=1.0,
        note=f"SGLang's {disk:.2f} s over ours {ours:.2f} s ({spread(found.ours)})",
    )
    yield Measure(
        key="load_over_flattened_bucket",
        value=bucket / ours,
        unit="ratio",
        note=f"SGLang's {bucket:.2f} s over ours {ours:.2f} s",
    )
    yield Measure(key="verify_s", value=median(found.verify), unit="s", note=spread(found.verify))


def fetch(repeats: int, _say: Say) -> Iterable[Measure]:
    """A version from another pod's arena, over gRPC on loopback."""
    from tests.bench import fetch as bench

    found = bench.measure(repeats)
    seconds, memcpy = median(found.fetch), median(found.memcpy)
    rate = found.nbytes / 1e9
    yield Measure(
        key="fetch_over_memcpy",
        value=memcpy / seconds,
        unit="ratio",
        note=f"{rate / seconds:.2f} GB/s ({spread(found.fetch)}), memcpy {rate / memcpy:.2f} GB/s",
    )


def switch(repeats: int, say: Say) -> Iterable[Measure]:
    """Engine up and down, for the demo's model."""
    from tests.bench import switch as bench

    found = bench.measure(repeats, say)
    yield Measure(key="switch_cold_s", value=median(found.cold), unit="s", note=spread(found.cold))
    yield Measure(
        key="switch_standby_s",
        value=median(found.standby),
        unit="s",
        at_most=2.0,
        note=f"{spread(found.standby)}; the last: {found.detail}",
    )
    yield Measure(key="switch_back_s", value=median(found.back), unit="s", at_most=0.5, note=spread(found.back))


def rollout(repeats: int, say: Say) -> Iterable[Measure]:
    """Our attention on a CPU against SGLang's."""
    from tests.bench import rollout as bench

    return bench.measure(repeats, say)


def overhead(repeats: int, say: Say) -> Iterable[Measure]:
    """What the demo's iterations spend on nothing in particular."""
    from tests.bench import runs
    from tests.bench import switch as sample

    done = runs.run("overhead", sample.SAMPLE, say, iterations=OVERHEAD_ITERATIONS, check=False)
    seconds = [record.seconds for record in done.report.iterations[1:]]
    other, total = sum(one.other for one in seconds), sum(one.total for one in seconds)
    yield Measure(
        key="overhead_share",
        value=other / total,
        unit="share",
        at_most=0.05,
        note=f"{other:.2f} s of {total:.2f} s in {len(seconds)} iterations",
    )


PARTS = tuple(Part(name=act.__name__, measure=act) for act in (publish, load, fetch, switch, rollout, overhead))


def main() -> int:
    """Exit code 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.circle", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=[part.name for part in PARTS], help="these parts; nothing is written"
    )
    parser.add_argument(
        "--repeats", type=int, default=7, help="of each measurement (default 7); below 5 nothing is written"
    )
    options = parser.parse_args()
    report.end_in_order()
    chosen = [part for part in PARTS if options.only is None or part.name in options.only]
    progress = Progress("circle", {part.name: SECONDS[part.name] * options.repeats / 7 for part in chosen})
    measures: list[Measure] = []
    for part in chosen:
        progress.part(part.name)
        measures.extend(part.measure(options.repeats, partial(progress.say)))
    return report.finish("circle", measures, save=options.only is None and options.repeats >= LEAST_REPEATS)


if __name__ == "__main__":
    sys.exit(main())
