"""`make bench-learning`: the samples to their ends on three seeds, partial rollouts against full ones, and TRL beside
the first sample, as a table and `results/learning.json`.

`--only tail` (or letters, segments, bf16, two-pods, trl) measures a part of it again; `--iterations N` is a shorter one
and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench import report, runs, tail, trl
from tests.bench.report import TOP, Measure, Progress, Say

from twinpod.records.run import IterationRecord

SAMPLES = TOP / "manifests" / "samples"
SEEDS = (0, 1, 2)
SECONDS = {
    "letters": 3 * 300.0,
    "segments": 3 * 450.0,
    "bf16": 3 * 300.0,
    "two-pods": 3 * 500.0,
    "tail": 360.0,
    "trl": 600.0,
}
TAIL_STEADY = 21  # first iteration that counts: by then the partial run's long answers come in as fast as they begin
TAIL_ITERATIONS = 51


def letters(iterations: int, say: Say) -> Iterable[Measure]:
    """reverse-letters on every seed."""
    return _sample("", SAMPLES / "reverse-letters.yaml", iterations, say)


def segments(iterations: int, say: Say) -> Iterable[Measure]:
    """reverse-segments on every seed."""
    return _sample("segments_", SAMPLES / "reverse-segments.yaml", iterations, say)


def bf16(iterations: int, say: Say) -> Iterable[Measure]:
    """reverse-bf16 on every seed: the demo's bars over float32 main weights."""
    return _sample("bf16_", SAMPLES / "reverse-bf16.yaml", iterations, say)


def two_pods(iterations: int, say: Say) -> Iterable[Measure]:
    """two-pods on every seed: the same bars, with two pods on this machine's processors."""
    return _sample("two_pods_", SAMPLES / "two-pods.yaml", iterations, say)


def _sample(prefix: str, manifest: Path, iterations: int, say: Say) -> Iterable[Measure]:
    """From each run's summary.json: the worst of the seeds."""
    summaries = []
    for place, seed in enumerate(SEEDS):
        one = partial(_share, say, f"seed {seed}, ", place / len(SEEDS), 1 / len(SEEDS))
        done = runs.run(f"{manifest.stem}-{seed}", manifest, one, seed=seed, iterations=iterations)
        summaries.append(done.summary)
    for key, field, worst, unit, low, high in (
        ("reward_min_of_3", "reward", min, "reward", 0.9, None),
        ("exact_match_min_of_3", "exactMatch", min, "share", 0.95, None),
        ("seconds_max_of_3", "seconds", max, "s", None, 600.0),
    ):
        values = [math.nan if summary[field] is None else float(summary[field]) for summary in summaries]
        value = math.nan if any(map(math.isnan, values)) else worst(values)
        note = "seeds " + ", ".join(f"{seed}: {value:.3g}" for seed, value in zip(SEEDS, values, strict=True))
        yield Measure(key=prefix + key, value=value, unit=unit, at_least=low, at_most=high, note=note)


def _share(say: Say, words: str, start: float, size: float, what: str, share: float) -> None:
    """Progress of a part of a part."""
    say(words + what, start + size * share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """Means over the iterations of a run that count."""

    seconds: float  # an iteration
    generate: float  # seconds of it
    tokens: float  # trained in it
    length: float  # tokens of an answer that was trained on
    reward: float  # of an answer that was trained on
    groups: float  # trained in an iteration

    @property
    def reward_a_token(self) -> float:
        """Rewards that were trained on, over trained tokens."""
        return self.reward / self.length


def steady(records: Sequence[IterationRecord]) -> Steady:
    """Means from `TAIL_STEADY` on (from the middle of a shortened run on); the last, with its snapshot, is left out."""
    first = min(TAIL_STEADY, len(records) // 2 + 1)
    counted = [record for record in records[:-1] if record.iteration >= first]
    trained = [record for record in counted if record.samples]
    samples = sum(record.samples for record in trained)
    return Steady(
        seconds=statistics.mean(record.seconds.total for record in counted),
        generate=statistics.mean(record.seconds.generate for record in counted),
        tokens=statistics.mean(record.tokens_trained for record in counted),
        length=sum(record.tokens_trained for record in trained) / samples,
        reward=sum(record.reward * record.samples for record in trained) / samples,
        groups=statistics.mean(record.groups for record in counted),
    )


def long_tail(iterations: int, say: Say) -> Iterable[Measure]:
    """Partial rollouts against full ones on answers with a long tail of lengths."""
    model = (runs.FOLDER / "tail-model").absolute()
    tail.write_model(model)
    found = []
    for place, is_partial in enumerate((False, True)):
        document = tail.job(model, partial=is_partial, iterations=iterations or TAIL_ITERATIONS)
        name = document["metadata"]["name"]
        manifest = runs.FOLDER / f"{name}.json"
        manifest.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        done = runs.run(name, manifest, partial(_share, say, f"{name}, ", place / 2, 0.5), check=False)
        found.append(steady(done.report.iterations))
    full, part = found
    return _tail_measures(full, part)


def _tail_measures(full: Steady, part: Steady) -> Iterable[Measure]:
    yield Measure(
        key="partial_over_full",
        value=part.seconds / full.seconds,
        unit="ratio",
        at_most=0.6,
        note=f"{part.seconds:.2f} s an iteration (generate {part.generate:.2f}) over {full.seconds:.2f} s"
        f" (generate {full.generate:.2f}), each {tail.GROUPS} groups of {tail.SAMPLES}",
    )
    yield Measure(
        key="partial_over_full_a_token",
        value=part.seconds / part.tokens / (full.seconds / full.tokens),
        unit="ratio",
        note=f"seconds per trained token; {part.tokens:.0f} and {full.tokens:.0f} tokens an iteration,"
        f" mean lengths {part.length:.1f} and {full.length:.1f}",
    )
    yield Measure(
        key="partial_reward_ratio",
        value=part.reward_a_token / full.reward_a_token,
        unit="ratio",
        note=f"reward per trained token, partial over full; rewards {part.reward:.3f} and {full.reward:.3f},"
        f" groups an iteration {part.groups:.1f} and {full.groups:.1f}",
    )


PARTS = {
    "letters": letters,
    "segments": segments,
    "bf16": bf16,
    "two-pods": two_pods,
    "tail": long_tail,
    "trl": trl.measures,
}


def main() -> int:
    """Exit code 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.learning", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="these parts; the file keeps the others")
    parser.add_argument("--iterations", type=int, default=0, help="of each run, instead of its own; nothing is written")
    options = parser.parse_args()
    report.end_in_order()
    chosen = [name for name in PARTS if options.only is None or name in options.only]
    progress = Progress("learning", {name: SECONDS[name] for name in chosen})
    measures: list[Measure] = []
    for name in chosen:
        progress.part(name)
        measures.extend(PARTS[name](options.iterations, progress.say))
    return report.finish("learning", measures, save=not options.iterations, part=options.only is not None)


if __name__ == "__main__":
    sys.exit(main())
