"""`twinpod inspect DIR|rlj/NAME`: what a run did, from its database alone; works while it runs and afterwards."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields

from twinpod.cli.live import plain_line
from twinpod.cli.target import target_of
from twinpod.cli.words import duration, number
from twinpod.client.cluster import ClusterJob
from twinpod.master.inspect import inspect, to_json
from twinpod.records.run import IterationRecord, NamedCount, PhaseSeconds, RunReport
from twinpod.telemetry.tensorboard import step_scalars

NEWEST = 10  # iterations and versions that are listed; --json has all


def execute(arguments: argparse.Namespace) -> int:
    """Prints the report."""
    target = target_of(arguments)
    if isinstance(target, ClusterJob):
        print(target.inspect(*(["--json"] if arguments.json else [])), end="")
        return 0
    report = inspect(target)
    if arguments.json:
        print(to_json(report))
    else:
        for line in lines_of(report):
            print(line)
    return 0


def lines_of(report: RunReport) -> Iterator[str]:
    """The report for a person; pure."""
    rolled_back = f"{report.resumes} resumes, {report.iterations_rolled_back} iterations rolled back"
    reward, right = number(report.reward_last_5, 3), number(report.right_last_5, 3)
    yield f"run            {report.job}: {report.state}, {report.iterations_committed} iterations committed"
    yield f"epoch, line    {report.epoch}, {report.line} ({rolled_back})"
    yield f"reward         {reward}, wholly right {right} (last 5 iterations)"
    for one in report.evaluations:
        share, after = number(one.right, 3), f"{one.prompts} prompts after iteration {one.iteration}"
        yield f"held out       wholly right {share}, reward {number(one.reward, 3)} ({after})"
    yield f"prompts        {report.prompts_trained} trained; times trained: {_counts(report.prompts_by_times_trained)}"
    yield f"               trained twice in one pass: {report.trained_twice_in_a_pass}"
    yield f"groups         {_counts(report.groups)}"
    yield f"trajectories   {_counts(report.trajectories)}"
    yield f"               by number of weight versions: {_counts(report.trajectories_by_versions)}"
    yield f"segments       {report.segments} with {report.tokens} tokens"
    yield f"               by pod: {_counts(report.pods)}"
    yield f"               stored twice: {report.duplicate_tokens}, broken chains: {report.chains_broken}"
    for change in report.settings_changes:
        yield f"settings       from iteration {change.iteration} on: {change.field} {change.old} → {change.new}"
    for version in report.versions[-NEWEST:]:
        use = f"{version.segments} segments, {version.tokens} tokens, trained in iteration {version.iteration}"
        yield f"version {version.version:<6} {use}{', rolled back' if version.rolled_back else ''}"
    yield f"counters       {_counts(report.counters) or 'none'}"
    spent = ", ".join(f"{field.name} {getattr(report.seconds, field.name):.1f}" for field in fields(PhaseSeconds))
    yield f"seconds        {duration(report.seconds.total)}: {spent}"
    for record in report.iterations[-NEWEST:]:
        yield plain_line(record, None)
    yield from _steps(report.iterations[-1:])


def _steps(records: Sequence[IterationRecord]) -> Iterator[str]:
    """A line for each optimizer step, where the books have them."""
    for record in records:
        for place, step in enumerate(step_scalars(record), start=1):
            loss, norm, clipped, ratio, entropy = (
                step.get(f"step/{name}", math.nan) for name in ("loss", "grad_norm", "clipped", "log_ratio", "entropy")
            )
            yield (
                f"step {place:<9} loss {loss:.4g}, gradient norm {norm:.4g} ({clipped:.0%} clipped),"
                f" log-ratio {ratio:.4g}, entropy {entropy:.4g} (iteration {record.iteration})"
            )


def _counts(counts: Sequence[NamedCount]) -> str:
    return ", ".join(f"{one.name}: {one.count}" for one in counts)
