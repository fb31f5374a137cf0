"""How the learning rate moves over a run, as a person writes it."""

from __future__ import annotations

from typing import Literal

from twinpod.api.base import Decimal, Natural, Part


class LearningRateSchedule(Part):
    """Warm-up and decay of algorithm.learningRate; both count iterations, so a resume needs no state."""

    warmup_iterations: Natural = 0
    """Iterations over which the rate grows in equal steps; the one after them is the first with the whole rate."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls from the end of the warm-up to the last iteration."""
    minimum: Decimal = "0"
    """Rate that the decay ends at, at most learningRate, as a decimal in quotes; ignored with constant."""
