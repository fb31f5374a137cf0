"""The objective: online policy mirror descent, paper.md section 5. Pure torch.

For the k samples of a prompt, `(1/k) sum_j [ -(r_j - baseline) logp_j + (tau/2) d_j^2 ]` with `d_j = logp_j -
logp_ref_j`, averaged over prompts. `logp_j` and `d_j` are sums over the *same* tokens of sample j (design.md 8.2).
There is no value network, no clipping, no importance ratio and no division by a standard deviation.

Shapes: B samples, L positions. Everything is a sum over samples with a weight each, so that micro-batches and
data-parallel ranks add up to the whole whatever way the samples are dealt out.
"""

# ruff: noqa: N815  # shapes are part of tensors' names

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from twinpod.errors import InputError

MASKS = ("all", "current")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossParts:
    """A micro-batch's share of the loss; of each sample, detached, its loss without weight and `d_j` in nats."""

    loss: Tensor
    each_B: Tensor
    log_ratio_B: Tensor


def policy_loss(
    logps_BL: Tensor, reference_BL: Tensor, mask_BL: Tensor, advantage_B: Tensor, weight_B: Tensor, tau: float
) -> LossParts:
    """Loss of a micro-batch.

    `weight_B` is 1/(groups of the batch x samples of the group). Differentiable in `logps_BL`.
    """
    logp_B = (logps_BL * mask_BL).sum(dim=-1)
    log_ratio_B = ((logps_BL - reference_BL) * mask_BL).sum(dim=-1)
    each_B = -advantage_B * logp_B + 0.5 * tau * log_ratio_B.square()
    return LossParts(loss=(weight_B * each_B).sum(), each_B=each_B.detach(), log_ratio_B=log_ratio_B.detach())


def weights_gap(logps_BL: Tensor, behaviour_BL: Tensor, on_policy_BL: Tensor) -> tuple[float, int]:
    """`(sum |logp_trainer - logp_engine|, tokens)` over on-policy tokens (design.md 8.11)."""
    gap_BL = (logps_BL.double() - behaviour_BL.double()).abs() * on_policy_BL
    return float(gap_BL.sum()), int(on_policy_BL.sum())


def mean_or_nan(total: float, count: float) -> float:
    """A mean, or nan where there was nothing to average."""
    return total / count if count else math.nan


def check_mask(mask: str) -> None:
    """InputError for a mask mode that does not exist."""
    if mask not in MASKS:
        raise InputError(f"unknown mode {mask!r}", where="mask", mend=f"use one of {', '.join(MASKS)}")
