"""Log-probs of given tokens from hidden states, a chunk of positions at a time: whole logits `[B, L, V]` never exist.

The output layer is the largest tensor of a training step: 32k positions of a vocabulary of 152k are 20 GB in float32,
and a straight way through it holds several of them. Here a chunk's logits live only while they are reduced to three
numbers a position, and the backward pass makes them again, chunk by chunk (as Liger's and Megatron's fused linear
cross entropy do). Only positions whose log-prob is asked for are computed: prompts and padding cost nothing.

Tensor parallel ranks reduce their own rows of the vocabulary and meet once, behind the last chunk; the backward pass
has no collective of its own. What lies before it sums the gradient of hidden states over tensor-parallel ranks:
Megatron's region functions, for sequence parallelism too.

The rows that only pad the vocabulary are sliced off, so they can have no probability and get no gradient.

Shapes: T positions of a micro-batch (sequence first, as Megatron keeps hidden states), N of them asked for, C in a
chunk, W rows of the vocabulary on this rank, H hidden size.
"""

# ruff: noqa: N815  # shapes are part of tensors' names

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

# float32 logits of a chunk. A GPU's matrix units want some hundreds of positions; on a CPU 128 MiB was no faster.
CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}
WEIGHT_ROWS = 16_384  # rows of the output layer whose gradient is summed at once where it is not of its own type


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLayer:
    """The output layer of one tensor-parallel rank of the last stage."""

    weight_WH: Tensor  # padding rows last
    first: int  # token id of row 0
    rows: int  # rows that are tokens; the rest pads the vocabulary
    group: dist.ProcessGroup | None  # tensor-parallel ranks; None: this one alone
    sequence_parallel: bool = False  # hidden states come divided by position
    main_grad_WH: Tensor | None = None  # where the weight's gradient is summed (Megatron's DDP); None: autograd's way


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogps:
    """float32[B, L]: log-probs of the targets (differentiable) and entropy in nats (detached); 0 where not asked for.

    Entropy is None unless asked for.
    """

    logps_BL: Tensor
    entropy_BL: Tensor | None


def token_logps(
    hidden_LBH: Tensor,
    layer: OutputLayer,
    targets_BL: Tensor,
    wanted_BL: Tensor,
    *,
    temperature: float,
    entropy: bool = False,
    chunk_bytes: int | None = None,
) -> TokenLogps:
    """Log-probs of `targets_BL` under softmax(logits / temperature), where `wanted_BL` is true.

    Collective over tensor-parallel ranks, which must pass the same targets. `hidden_LBH` is the decoder's output; with
    sequence parallelism it holds this rank's part of L. `chunk_bytes` are those of a chunk's logits in float32.
    """
    if layer.group is not None:
        hidden_LBH = (
            gather_from_sequence_parallel_region(hidden_LBH, tensor_parallel_output_grad=True, group=layer.group)
            if layer.sequence_parallel
            else copy_to_tensor_model_parallel_region(hidden_LBH, group=layer.group)
        )
    rows_N = wanted_BL.t().reshape(-1).nonzero()[:, 0]
    targets_N = targets_BL.t().reshape(-1)[rows_N]
    chunk_bytes = chunk_bytes or CHUNK_BYTES[hidden_LBH.device.type]
    work = _Work(layer=layer, temperature=temperature, entropy=entropy, chunk_bytes=chunk_bytes)
    logps_T, entropy_T = _ChunkedLogps.apply(hidden_LBH.flatten(0, 1), layer.weight_WH, rows_N, targets_N, work)
    length, count = hidden_LBH.shape[:2]
    return TokenLogps(
        logps_BL=logps_T.view(length, count).t(),
        entropy_BL=entropy_T.view(length, count).t() if entropy else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    layer: OutputLayer
    temperature: float
    entropy: bool
    chunk_bytes: int

    def cuts(self, count: int) -> list[slice]:
        """`[0, count)` in chunks; none where this rank's part is nothing but padding."""
        if self.layer.rows == 0:
            return []
        size = max(1, self.chunk_bytes // (4 * self.layer.rows))
        return [slice(begin, begin + size) for begin in range(0, count, size)]

    def logits(self, hidden_CH: Tensor, weight_WH: Tensor) -> Tensor:
        """float32[C, rows], a tensor of our own; multiplied in the weights' type, as the engine does."""
        logits_CW = torch.matmul(hidden_CH, weight_WH[: self.layer.rows].t()).float()
        return logits_CW if self.temperature == 1.0 else logits_CW.div_(self.temperature)

    def local(self, targets_C: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the targets in this rank's part (0 for those of others), and which of them are ours."""
        rows_C = targets_C - self.layer.first
        ours_C = (rows_C >= 0) & (rows_C < self.layer.rows)
        return rows_C.masked_fill(~ours_C, 0), ours_C


class _ChunkedLogps(torch.autograd.Function):  # type: ignore[misc]  # torch is not followed by mypy
    """float32[T] log-probs and entropies, 0 at positions that were not asked for."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, weight_WH: Tensor, rows_N: Tensor, targets_N: Tensor, work: _Work
    ) -> tuple[Tensor, Tensor]:
        """Reduce chunk by chunk, then over the tensor-parallel ranks."""
        max_N = hidden_TH.new_full(rows_N.shape, -math.inf, dtype=torch.float32)
        sum_N, target_N, weighted_N = (torch.zeros_like(max_N) for _ in range(3))
        for cut in work.cuts(len(rows_N)):
            logits_CW = work.logits(hidden_TH[rows_N[cut]], weight_WH)
            max_N[cut] = logits_CW.amax(dim=1)
            local_C, ours_C = work.local(targets_N[cut])
            target_N[cut] = logits_CW.gather(1, local_C[:, None])[:, 0] * ours_C
            logits_CW.sub_(max_N[cut, None])
            if work.entropy:
                exp_CW = logits_CW.exp()
                weighted_N[cut] = torch.einsum("cw,cw->c", exp_CW, logits_CW)
            else:
                exp_CW = logits_CW.exp_()
            sum_N[cut] = exp_CW.sum(dim=1)
        most_N, log_sum_N, target_N, weighted_N = _over_ranks(max_N, sum_N, target_N, weighted_N, work.layer)
        ctx.work = work
        ctx.save_for_backward(hidden_TH, weight_WH, rows_N, targets_N, most_N + log_sum_N)
        logps_T, entropy_T = (max_N.new_zeros(len(hidden_TH)) for _ in range(2))
        logps_T[rows_N] = target_N - most_N - log_sum_N
        if work.entropy:
            entropy_T[rows_N] = log_sum_N - weighted_N
        ctx.mark_non_differentiable(entropy_T)
        return logps_T, entropy_T

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor, _entropy_T: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """The logits again, chunk by chunk: their gradient is (one at the target - softmax) / temperature."""
        hidden_TH, weight_WH, rows_N, targets_N, log_total_N = ctx.saved_tensors
        work: _Work = ctx.work
        scaled_N = grad_T[rows_N] / work.temperature
        grad_hidden_TH = torch.zeros_like(hidden_TH) if ctx.needs_input_grad[0] else None
        grad_weight_WH = _gradient_sum(weight_WH, work.layer) if ctx.needs_input_grad[1] else None
        real_WH = weight_WH[: work.layer.rows]
        for cut in work.cuts(len(rows_N)):
            hidden_CH = hidden_TH[rows_N[cut]]
            grad_CW = work.logits(hidden_CH, weight_WH).sub_(log_total_N[cut, None]).exp_().mul_(-scaled_N[cut, None])
            local_C, ours_C = work.local(targets_N[cut])
            grad_CW.scatter_add_(1, local_C[:, None], (scaled_N[cut] * ours_C)[:, None])
            grad_CW = grad_CW.to(weight_WH.dtype)
            if grad_hidden_TH is not None:
                grad_hidden_TH[rows_N[cut]] = grad_CW @ real_WH
            if grad_weight_WH is not None:
                _add_outer(grad_weight_WH[: work.layer.rows], grad_CW, hidden_CH)
        if grad_weight_WH is not None and grad_weight_WH is work.layer.main_grad_WH:
            grad_weight_WH = None  # it is where it belongs
        elif grad_weight_WH is not None:
            grad_weight_WH = grad_weight_WH.to(weight_WH.dtype)
        return grad_hidden_TH, grad_weight_WH, None, None, None


def _over_ranks(
    max_N: Tensor, sum_N: Tensor, target_N: Tensor, weighted_N: Tensor, layer: OutputLayer
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`(m, log sum exp(x - m), x of the target, mean of x - m)` of the whole vocabulary, from a rank's part of each."""
    if layer.group is None or not len(max_N):
        return max_N, sum_N.log(), target_N, weighted_N / sum_N
    most_N = max_N.clone()
    dist.all_reduce(most_N, op=dist.ReduceOp.MAX, group=layer.group)
    lower_N = (max_N - most_N).clamp_min_(-1e30)  # a rank of nothing but padding has -inf, and 0 x inf is no number
    scale_N = lower_N.exp()
    sums = torch.stack((sum_N * scale_N, target_N, (weighted_N + lower_N * sum_N) * scale_N))
    dist.all_reduce(sums, group=layer.group)
    return most_N, sums[0].log(), sums[1], sums[2] / sums[0]


def _gradient_sum(weight_WH: Tensor, layer: OutputLayer) -> Tensor:
    """Where chunks add up: Megatron's own sum, or a new one in float32, so that chunks round no more than one would."""
    if layer.main_grad_WH is not None:
        return layer.main_grad_WH
    return torch.zeros(weight_WH.shape, dtype=torch.float32, device=weight_WH.device)


def _add_outer(sum_WH: Tensor, grad_CW: Tensor, hidden_CH: Tensor) -> None:
    """`sum += grad^T hidden`, without a second tensor of the weight's size."""
    if sum_WH.dtype is hidden_CH.dtype:
        sum_WH.addmm_(grad_CW.t(), hidden_CH)
        return
    for begin in range(0, len(sum_WH), WEIGHT_ROWS):
        sum_WH[begin : begin + WEIGHT_ROWS] += grad_CW[:, begin : begin + WEIGHT_ROWS].t() @ hidden_CH
