"""A run as Prometheus text (exposition format 0.0.4). Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from twinpod.records.run import NamedCount, Progress

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STATES = ("Starting", "Running", "Degraded", "Finishing", "Succeeded", "Failed", "Interrupted")


def exposition(job: str, progress: Progress, counters: Iterable[NamedCount]) -> str:
    """Gauges of the progress and counters of the books; unknown numbers (nan) are left out."""
    label = f'job="{_escaped(job)}"'
    seconds = progress.seconds
    gauges: tuple[tuple[str, str, float], ...] = (
        ("iteration", "Iteration under way.", progress.iteration),
        ("iterations", "Iterations wanted.", progress.iterations),
        ("weight_version", "Committed weight version.", progress.version),
        ("job_epoch", "Starts of a master.", progress.epoch),
        ("groups_finished", "Finished groups of this rollout phase.", progress.groups_finished),
        ("groups_wanted", "Groups that end the rollout phase.", progress.groups_wanted),
        ("reward", "Mean reward of the last iteration.", progress.reward),
        ("right_share", "Share of wholly right answers in the last iteration.", progress.right),
        ("response_tokens", "Mean response tokens of the last iteration.", progress.length),
        ("generated_tokens_per_second", "Generation speed of the last iteration.", progress.tokens_per_s),
        ("iteration_seconds", "Seconds of the last iteration.", seconds.total),
        ("eta_seconds", "Seconds to the end at the present pace.", progress.eta_s),
    )
    lines: list[str] = []
    for name, text, value in gauges:
        if not math.isnan(value):
            lines += [
                f"# HELP twinpod_{name} {text}",
                f"# TYPE twinpod_{name} gauge",
                f"twinpod_{name}{{{label}}} {value:g}",
            ]
    lines += [
        "# HELP twinpod_phase_seconds Seconds of the last iteration by phase.",
        "# TYPE twinpod_phase_seconds gauge",
    ]
    for phase in ("generate", "train", "weights", "switch", "snapshot", "other"):
        lines.append(f'twinpod_phase_seconds{{{label},phase="{phase}"}} {getattr(seconds, phase):g}')
    lines += ["# HELP twinpod_state 1 for the state that the run is in.", "# TYPE twinpod_state gauge"]
    lines += [f'twinpod_state{{{label},state="{state}"}} {int(state == progress.state)}' for state in _STATES]
    lines += ["# HELP twinpod_events_total What happened, by name.", "# TYPE twinpod_events_total counter"]
    lines += [f'twinpod_events_total{{{label},event="{_escaped(one.name)}"}} {one.count}' for one in counters]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
