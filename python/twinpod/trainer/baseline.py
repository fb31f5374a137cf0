"""What is subtracted from a group's rewards (paper.md section 5). Pure, numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from twinpod.errors import InputError

Floats = npt.NDArray[np.float64]


def mean_baseline(rewards_k: Floats) -> float:
    """`r_mean`, the report's choice."""
    return float(np.mean(rewards_k))


def log_mean_exp_baseline(rewards_k: Floats, tau: float) -> float:
    """`tau log((1/k) sum_j exp(r_j / tau))`, the estimate of `tau log Z`.

    Towards max(r) for small tau, r_mean for large.
    """
    if tau <= 0:
        raise InputError(f"must be above 0 for the log-mean-exp baseline, not {tau}", where="tau")
    scaled_k = np.asarray(rewards_k, dtype=np.float64) / tau
    top = float(np.max(scaled_k))
    return tau * (top + float(np.log(np.mean(np.exp(scaled_k - top)))))


def advantages(rewards_k: Floats, kind: str, tau: float) -> Floats:
    """`r_j - baseline` for the k rewards of one group; `kind` is `mean` or `log-mean-exp`."""
    rewards_k = np.asarray(rewards_k, dtype=np.float64)
    if rewards_k.size == 0:
        raise InputError("a group needs at least one reward", where="baseline")
    if kind == "mean":
        return rewards_k - mean_baseline(rewards_k)
    if kind == "log-mean-exp":
        return rewards_k - log_mean_exp_baseline(rewards_k, tau)
    raise InputError(f"unknown kind {kind!r}", where="baseline", mend="use 'mean' or 'log-mean-exp'")
