"""Logs, Prometheus text, TensorBoard files and the curve, from records."""

from __future__ import annotations

import io
import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest

from twinpod.records.run import NamedCount, PhaseSeconds, Progress
from twinpod.telemetry.curve import draw, points
from twinpod.telemetry.log import EventFormatter
from twinpod.telemetry.prometheus import exposition
from twinpod.telemetry.tensorboard import scalars, write_all
from twinpod.testing.small_run import record

SECONDS = PhaseSeconds(generate=1.0, train=2.0, weights=0.5, switch=0.25, snapshot=0.0, other=0.25)
PROGRESS = Progress(
    state="Running", epoch=2, iteration=3, iterations=9, version=4, phase="train", since=1.0,
    groups_finished=1, groups_wanted=2,
    reward=0.5, right=math.nan, length=6.0, tokens_per_s=100.0, seconds=SECONDS, waiting_for="", eta_s=math.nan,
    message="", updated=2.0,
)  # fmt: skip


def event(formatter: EventFormatter, **extra: object) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.getLogger("twinpod.x")
    logger.handlers[:], logger.propagate = [], False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.info("iteration %d", 3, extra=extra)
    return stream.getvalue().strip()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"reward": 1 / 3}, "reward=0.333333"),
        ({"why": "two words"}, 'why="two words"'),
        ({"why": ""}, 'why=""'),
        ({"pods": "a=b"}, 'pods="a=b"'),
    ],
)
def test_a_log_event_is_one_line_of_logfmt(extra: dict[str, object], words: str) -> None:
    line = event(EventFormatter({"job": "j"}, as_json=False), **extra)
    assert line.endswith(f'twinpod.x "iteration 3" job=j {words}')
    assert "\n" not in line


def test_a_log_event_is_one_object_of_json() -> None:
    said = json.loads(event(EventFormatter({"job": "j"}, as_json=True), iteration=3))
    assert (said["event"], said["job"], said["iteration"], said["level"]) == ("iteration 3", "j", 3, "info")


def test_prometheus_text_leaves_unknown_numbers_out_and_escapes_labels() -> None:
    text = exposition('a"b', PROGRESS, [NamedCount(name="segments_refused", count=2)])
    assert 'twinpod_iteration{job="a\\"b"} 3' in text
    assert 'twinpod_events_total{job="a\\"b",event="segments_refused"} 2' in text
    assert "eta" not in text
    assert text.count("# TYPE") == text.count("# HELP")
    assert text.endswith("\n")


def test_tensorboard_files_hold_the_curves_of_every_iteration(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    done = [record(n, version=n) for n in (1, 2, 3)]
    assert "train/weights_gap" not in scalars(done[0])  # nan
    write_all(tmp_path, done)
    (file,) = tmp_path.iterdir()
    events = [event for event in EventFileLoader(str(file)).Load() if event.summary.value]
    assert [event.step for event in events] == [1, 2, 3]
    assert {"reward/mean", "seconds/generate", "rollout/tokens_per_second"} <= {
        value.tag for value in events[0].summary.value
    }


def test_the_curve_is_a_picture_and_skips_iterations_without_training(tmp_path: Path) -> None:
    done = [replace(record(n, version=n), reward=math.nan if n == 2 else n / 3) for n in (1, 2, 3)]
    assert points(done, lambda one: one.reward) == ([1, 3], [1 / 3, 1.0])
    draw(done, tmp_path / "reward.png", "a run")
    assert (tmp_path / "reward.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["reward.png"]
