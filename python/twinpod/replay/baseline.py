"""What is subtracted from a group's rewards (paper.md section 5). Pure, numpy."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from twinpod.errors import InputError


class Baseline(StrEnum):
    """Which number of a group is subtracted from each of its rewards."""

    MEAN = "mean"
    LOG_MEAN_EXP = "logMeanExp"


def advantages(rewards_k: Sequence[float], kind: Baseline, tau: float) -> npt.NDArray[np.float64]:
    """`r_j - b` for the k rewards of one group; b is their mean, or `tau log((1/k) sum_j exp(r_j / tau))`."""
    rewards: npt.NDArray[np.float64] = np.asarray(rewards_k, dtype=np.float64)
    if rewards.size == 0:
        raise InputError("a group without rewards has no baseline", where="replay")
    if kind is Baseline.MEAN:
        return np.asarray(rewards - rewards.mean())
    if tau <= 0:
        raise InputError(f"must be above 0 for the baseline logMeanExp, not {tau}", where="algorithm.tau")
    scaled = rewards / tau
    top = scaled.max()  # taken out of the exponent: small tau would overflow
    return np.asarray(rewards - tau * (top + np.log(np.mean(np.exp(scaled - top)))))
