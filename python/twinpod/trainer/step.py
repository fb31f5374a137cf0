"""One iteration of training (paper.md section 5).

1. Load the batch; every step sees the same micro-batches.
2. Reference pass: log-probs of all samples under the weights as they are now. They are the reference of the whole
   iteration, and they show the *weights gap*: on on-policy tokens the engine must have had the same log-probs
   (design.md 8.11).
3. AdamW without a past, then `steps` times: loss over all samples, one update.
4. Statistics, the same on every rank.
"""

# ruff: noqa: N815  # shapes are part of tensors' names

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from twinpod.records.training import RankBatch, TrainSettings, TrainStats
from twinpod.trainer.logps import token_logps
from twinpod.trainer.loss import check_mask, mean_or_nan, policy_loss, weights_gap
from twinpod.trainer.megatron import RankModel, hidden_of, output_layer, run_schedule
from twinpod.trainer.optimizer import Optimizer
from twinpod.trainer.packing import DataLoader, MicroBatch, Micros
from twinpod.trainer.schedule import learning_rate


@dataclass(slots=True)
class Tally:
    """Sums over this rank's micro-batches of one pass; only the last pipeline stage adds to it."""

    loss: float = 0.0
    log_ratio: float = 0.0
    samples: int = 0
    gap: float = 0.0
    on_policy: int = 0
    tokens: int = 0

    def over_ranks(self, rank: RankModel) -> Tally:
        """The same sums over all ranks; tensor-parallel copies count once. Collective."""
        counts = rank.place.last_stage and rank.place.tp_rank == 0
        mine = [self.loss, self.log_ratio, self.samples, self.gap, self.on_policy, self.tokens]
        total = torch.tensor(mine if counts else [0.0] * len(mine), dtype=torch.float64, device=rank.machine.device)
        dist.all_reduce(total)
        loss, log_ratio, samples, gap, on_policy, tokens = total.tolist()
        return Tally(loss, log_ratio, int(samples), gap, int(on_policy), int(tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A micro-batch as tensors on the rank's device."""

    micro: MicroBatch
    tokens_BL: Tensor
    positions_BL: Tensor
    targets_BL: Tensor
    mask_BL: Tensor
    on_policy_BL: Tensor
    behaviour_BL: Tensor
    advantage_B: Tensor
    weight_B: Tensor


@dataclass(slots=True)
class Iteration:
    """The data and reference log-probs of one iteration on one rank; `references` fill on the last stage."""

    rank: RankModel
    settings: TrainSettings
    loader: DataLoader
    references: dict[int, Tensor] = field(default_factory=dict)


def train_iteration(rank: RankModel, batch: RankBatch, settings: TrainSettings) -> TrainStats:
    """Train one iteration in place and report. Collective; each rank passes its own samples."""
    check_mask(settings.mask)
    iteration = Iteration(rank, settings, DataLoader(batch, settings.mask))

    began = time.perf_counter()
    reference = reference_pass(iteration).over_ranks(rank)
    referenced = time.perf_counter()

    rank.optimizer.begin(replace(settings, learning_rate=learning_rate(settings, batch.iteration)))
    losses, norms = [], []
    last = Tally()
    for _ in range(settings.steps):
        last, norm = optimizer_step(iteration, rank.optimizer)
        losses.append(last.loss)
        norms.append(norm)
    rank.optimizer.end()
    last = last.over_ranks(rank)
    return TrainStats(
        iteration=batch.iteration,
        loss=_mean_loss(losses, rank),
        grad_norm=sum(norms) / len(norms),
        log_ratio=mean_or_nan(last.log_ratio, last.samples),
        weights_gap=mean_or_nan(reference.gap, reference.on_policy),
        on_policy_tokens=reference.on_policy,
        tokens=reference.tokens,
        reference_seconds=referenced - began,
        step_seconds=time.perf_counter() - referenced,
    )


def reference_pass(iteration: Iteration) -> Tally:
    """Fill `iteration.references` with the present weights' log-probs; returns gap and token counts of this rank."""

    def collect(device: Device, logps_BL: Tensor, tally: Tally) -> Tensor:
        iteration.references[device.micro.index] = logps_BL
        gap, tokens = weights_gap(logps_BL, device.behaviour_BL, device.on_policy_BL)
        tally.gap += gap
        tally.on_policy += tokens
        tally.tokens += int(device.mask_BL.sum())
        return logps_BL.new_zeros(())

    with torch.no_grad():
        return _run(iteration, iteration.loader.all(), collect, forward_only=True)


def optimizer_step(iteration: Iteration, optimizer: Optimizer) -> tuple[Tally, float]:
    """One update over all samples; returns this rank's sums and the gradient norm before clipping."""
    micros = iteration.loader.all()
    scale = iteration.rank.loss_scale(len(micros))

    def loss(device: Device, logps_BL: Tensor, tally: Tally) -> Tensor:
        parts = policy_loss(
            logps_BL,
            iteration.references[device.micro.index],
            device.mask_BL,
            device.advantage_B,
            device.weight_B,
            iteration.settings.tau,
        )
        tally.loss += float(parts.loss.detach())
        real_B = device.weight_B > 0
        tally.log_ratio += float(parts.log_ratio_B[real_B].sum())
        tally.samples += int(real_B.sum())
        return parts.loss * scale

    optimizer.zero_grad()
    tally = _run(iteration, micros, loss, forward_only=False)
    return tally, optimizer.step()


Consume = Callable[[Device, Tensor, Tally], Tensor]


def _run(iteration: Iteration, micros: Micros, consume: Consume, *, forward_only: bool) -> Tally:
    """Some micro-batches through Megatron's schedule; `consume` gets each one's log-probs on the last stage."""
    rank, tally = iteration.rank, Tally()

    def finish(device: Device, hidden_LBH: Tensor) -> tuple[Tensor, None]:
        found = token_logps(
            hidden_LBH,
            output_layer(rank),
            device.targets_BL,
            (device.mask_BL + device.on_policy_BL) > 0,
            temperature=iteration.settings.temperature,
            chunk_bytes=rank.chunk_bytes,
        )
        return consume(device, found.logps_BL, tally), None

    def forward(
        waiting: Iterator[MicroBatch], model: torch.nn.Module
    ) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Any]]]:
        device = _to_device(next(waiting), rank)
        output = hidden_of(rank, model, device.tokens_BL, device.positions_BL)
        return output, partial(finish, device)

    run_schedule(
        rank,
        forward,
        micros,
        rows=iteration.loader.rows,
        length=iteration.loader.length,
        forward_only=forward_only,
    )
    return tally


def _mean_loss(losses: list[float], rank: RankModel) -> float:
    return Tally(loss=sum(losses)).over_ranks(rank).loss / len(losses)


def _to_device(micro: MicroBatch, rank: RankModel) -> Device:
    """Padded on the right with blank positions, to the length that sequence parallel ranks can divide."""
    more = -micro.tokens_BL.shape[1] % rank.length_multiple

    def put(array: Any) -> Tensor:
        padded = np.pad(array, ((0, 0), (0, more))) if array.ndim == 2 and more else array
        return torch.from_numpy(padded).to(rank.machine.device)

    return Device(
        micro=micro,
        tokens_BL=put(micro.tokens_BL),
        positions_BL=put(micro.positions_BL),
        targets_BL=put(micro.targets_BL),
        mask_BL=put(micro.mask_BL),
        on_policy_BL=put(micro.on_policy_BL),
        behaviour_BL=put(micro.behaviour_BL),
        advantage_B=put(micro.advantage_B),
        weight_B=put(micro.weight_B),
    )
