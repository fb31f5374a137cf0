"""TensorBoard event files from committed iterations, with tensorboard's own writer.

Neither torch nor tensorflow is needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from twinpod.errors import EnvironmentFault
from twinpod.records.run import EvaluationRecord, IterationRecord, PhaseSeconds

OF_STATS = ("grad_norm", "clipped", "log_ratio", "entropy", "learning_rate")


def scalars(record: IterationRecord) -> dict[str, float]:
    """The curves of one iteration by tag; unknown numbers (nan) are left out. Pure."""
    generate = record.seconds.generate
    values: dict[str, float] = {
        "reward/mean": record.reward,
        "reward/right_share": record.right,
        "rollout/response_tokens": record.length,
        "rollout/tokens_generated": record.tokens_generated,
        "rollout/tokens_per_second": record.tokens_generated / generate if generate > 0 else math.nan,
        "train/loss": record.loss,
        "train/weights_gap": record.weights_gap,
        "train/groups": record.groups,
        "train/tokens": record.tokens_trained,
        "seconds/total": record.seconds.total,
    }
    values |= {f"seconds/{field.name}": getattr(record.seconds, field.name) for field in fields(PhaseSeconds)}
    stats = json.loads(record.stats) if record.stats else {}
    values |= {f"train/{name}": stats[name] for name in OF_STATS if name in stats}
    return _known(values)


def step_scalars(record: IterationRecord) -> list[dict[str, float]]:
    """The curves of each optimizer step of an iteration. Pure."""
    steps = json.loads(record.stats).get("steps", ()) if record.stats else ()
    return [_known({f"step/{name}": value for name, value in step.items()}) for step in steps]


def _known(values: Mapping[str, float]) -> dict[str, float]:
    return {tag: float(value) for tag, value in values.items() if not math.isnan(value)}


class BoardFiles:
    """Appends to one event file in `folder`.

    After a resume with a rollback the same steps are written again: TensorBoard shows the newest.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise EnvironmentFault(
                f"tensorboard is not installed ({error})", mend="pip install 'twinpod[master]'"
            ) from error
        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2.Summary
        self._writer: Any = EventFileWriter(str(folder))

    def write(self, record: IterationRecord) -> None:
        """One committed iteration, and its optimizer steps on an axis of their own."""
        self._add(scalars(record), record.iteration, record.committed_at)
        steps = step_scalars(record)
        for number, values in enumerate(steps, start=1):
            self._add(values, (record.iteration - 1) * len(steps) + number, record.committed_at)

    def write_evaluation(self, record: EvaluationRecord, at: float) -> None:
        """One evaluation on held-out prompts; `at`: unix seconds."""
        self._add({"evaluation/reward": record.reward, "evaluation/right_share": record.right}, record.iteration, at)

    def close(self) -> None:
        """Everything is in the file."""
        self._writer.close()

    def _add(self, values: dict[str, float], step: int, at: float) -> None:
        parts = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._writer.add_event(self._event(wall_time=at, step=step, summary=self._summary(value=parts)))
        self._writer.flush()


def write_all(
    folder: Path, iterations: Sequence[IterationRecord], evaluations: Sequence[EvaluationRecord] = ()
) -> None:
    """A whole run, from its books."""
    files = BoardFiles(folder)
    for record in iterations:
        files.write(record)
    for evaluation in evaluations:
        files.write_evaluation(evaluation, iterations[-1].committed_at if iterations else 0.0)
    files.close()
