"""The reward curve as a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from twinpod.errors import EnvironmentFault
from twinpod.records.run import IterationRecord


def draw(iterations: Sequence[IterationRecord], path: Path, title: str = "") -> None:
    """Reward, share of right answers (if any was ever right) and length by iteration, as a PNG.

    Needs matplotlib, no display.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvironmentFault(
            f"matplotlib is not installed ({error})", mend="pip install 'twinpod[master]'"
        ) from error
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot(*points(iterations, lambda one: one.reward), label="reward", color="#1f5fa8", linewidth=2)
    steps, right = points(iterations, lambda one: one.right)
    if any(right):
        upper.plot(steps, right, label="wholly right", color="#2c9a5b", linewidth=1.5)
    upper.set_title(title)
    upper.set_ylabel("mean over the batch")
    upper.legend(loc="lower right", frameon=False)
    upper.grid(alpha=0.3)
    lower.plot(*points(iterations, lambda one: one.length), color="#8a5a1f", linewidth=1.5)
    lower.set_ylabel("tokens")
    lower.set_xlabel("iteration")
    lower.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.png")
    figure.savefig(part)
    part.replace(path)


def points(
    iterations: Sequence[IterationRecord], value: Callable[[IterationRecord], float]
) -> tuple[list[int], list[float]]:
    """Iterations and values, without those that are unknown (nan). Pure."""
    pairs = [(one.iteration, value(one)) for one in iterations if not math.isnan(value(one))]
    return [step for step, _ in pairs], [number for _, number in pairs]
