"""The learning rate of an iteration: from its number and the length of the run alone, exact after a resume. Pure."""

from __future__ import annotations

import math

from twinpod.records.training import TrainSettings


def learning_rate(settings: TrainSettings, iteration: int) -> float:
    """Rate of an iteration, counted from 1.

    It grows in equal steps over the warm-up, `rate / (warmup + 1)` in the first iteration and whole in the one after
    the last. From there it falls to the minimum, which an iteration behind the end of the run would have: no iteration
    is spent on a rate of 0.
    """
    warmup, whole, least = settings.warmup_iterations, settings.learning_rate, settings.minimum_rate
    if iteration <= warmup:
        return whole * iteration / (warmup + 1)
    if settings.decay == "constant":
        return whole
    done = min(1.0, (iteration - 1 - warmup) / max(1, settings.iterations - warmup))
    left = 1.0 - done if settings.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return least + (whole - least) * left
