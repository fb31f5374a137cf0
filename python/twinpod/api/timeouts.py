"""From `spec.timeouts` to seconds; what is left out follows from the size of the model."""

from __future__ import annotations

import re

from twinpod.api.sizing.parameters import total
from twinpod.api.types import RLJob
from twinpod.records.model_shape import ModelShape
from twinpod.records.timeouts import USUAL, Timeouts

MOVED = 100e6  # bytes a second: the slowest way that weights are expected to take, over all pods
STORED = 50e6  # the same of a volume
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
STATE_BYTES = 16  # a parameter in a snapshot at most: main weight, two moments, and room

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}


def seconds(duration: str) -> float:
    """Of a duration such as "90s" or "1h30m"."""
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([0-9]+)([hms])", duration))


def timeouts_of(job: RLJob, shape: ModelShape) -> Timeouts:
    """The job's."""
    parameters = total(shape)
    weights = parameters * ITEM_BYTES[job.spec.model.dtype]
    usual = USUAL
    derived = {
        "engine_s": usual.engine_s + weights / MOVED,
        "weights_s": usual.weights_s + weights / MOVED,
        "snapshot_s": usual.snapshot_s + parameters * STATE_BYTES / STORED,
    }
    given = {f"{name}_s": seconds(value) for name, value in job.spec.timeouts if value is not None}
    return Timeouts(**(derived | given))
