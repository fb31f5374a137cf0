"""One iteration of training (paper.md section 5).

1. Load the batch; every pass over it sees the same micro-batches.
2. References: log-probs of all samples under the weights as they are now. They are the reference of the whole
   iteration, and they show the *weights gap*: on on-policy tokens the engine must have had the same log-probs
   (design.md 8.11). With one mini-batch the first step's own forward pass has them: its weights are these. With
   several, the later ones come after an update, so a pass without gradients goes before.
3. AdamW without a past, then `steps` times over all samples: a mini-batch after the other, one update each.
4. Statistics, the same on every rank.

Numbers that are not finite end it with a NumericsError on every rank, before the update that they would have gone
into; the weights are proved finite at the end. Whoever gets the error loads the last good weights.
"""

# ruff: noqa: N815  # shapes are part of tensors' names

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from twinpod.errors import NumericsError
from twinpod.records.training import RankBatch, StepStats, TrainSettings, TrainStats
from twinpod.trainer.finite import first_not_finite
from twinpod.trainer.logps import TokenLogps, token_logps
from twinpod.trainer.loss import check_mask, mean_or_nan, policy_loss, weights_gap
from twinpod.trainer.megatron import RankModel, hidden_of, output_layer, run_schedule
from twinpod.trainer.memory import held_tensors
from twinpod.trainer.packing import DataLoader, MicroBatch, Micros, largest_micro_batch
from twinpod.trainer.schedule import learning_rate

NAMED = 8  # trajectories that an error names
MEND = "the run goes on from its last snapshot with other samples; lower learningRate or clipGrad if it comes again"


@dataclass(slots=True)
class Tally:
    """Sums over this rank's micro-batches of one pass; only the last pipeline stage adds to it.

    `bad`: trajectories with a number that is not finite; over all ranks only their count is known, as `bad_count`.
    """

    loss: float = 0.0
    log_ratio: float = 0.0
    samples: int = 0
    gap: float = 0.0
    on_policy: int = 0
    tokens: int = 0
    entropy: float = 0.0
    bad_count: int = 0
    bad: list[int] = field(default_factory=list)

    def over_ranks(self, rank: RankModel) -> Tally:
        """The same sums over all ranks; tensor-parallel copies count once. Collective."""
        counts = rank.place.last_stage and rank.place.tp_rank == 0
        sums = (self.loss, self.log_ratio, self.gap, self.entropy)
        mine = [*sums, self.samples, self.on_policy, self.tokens, len(set(self.bad))]
        total = torch.tensor(mine if counts else [0.0] * len(mine), dtype=torch.float64, device=rank.machine.device)
        dist.all_reduce(total)
        loss, log_ratio, gap, entropy, samples, on_policy, tokens, bad = total.tolist()
        return Tally(loss, log_ratio, int(samples), gap, int(on_policy), int(tokens), entropy, int(bad), self.bad)


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
    iteration = Iteration(
        rank, settings, DataLoader(batch, settings.mask, largest_micro_batch(settings, rank.shape.max_positions))
    )
    rate = learning_rate(settings, batch.iteration)

    began = time.perf_counter()
    reference: Tally | None = None
    if iteration.loader.mini_batches > 1:
        reference = reference_pass(iteration).over_ranks(rank)
        _require_finite(rank, reference, "log-probs", f"iteration {batch.iteration}, reference pass")
    referenced = time.perf_counter()

    rank.optimizer.begin(replace(settings, learning_rate=rate))
    steps: list[StepStats] = []
    for _ in range(settings.steps):
        for number in range(iteration.loader.mini_batches):
            where = f"iteration {batch.iteration}, step {len(steps) + 1}"
            stats, total = optimizer_step(
                iteration, iteration.loader.mini_batch(number), where, refers=reference is None
            )
            steps.append(stats)
            reference = total if reference is None else reference
    rank.optimizer.end()
    assert reference is not None, "there is a step"
    if name := first_not_finite(held_tensors(rank)):
        raise NumericsError(f"{name} holds a number that is not finite", where=f"iteration {batch.iteration}")
    return TrainStats(
        iteration=batch.iteration,
        learning_rate=rate,
        loss=mean([one.loss for one in steps]),
        grad_norm=mean([one.grad_norm for one in steps]),
        clipped=mean([one.clipped for one in steps]),
        entropy=mean([one.entropy for one in steps]),
        log_ratio=steps[-1].log_ratio,
        weights_gap=mean_or_nan(reference.gap, reference.on_policy),
        on_policy_tokens=reference.on_policy,
        tokens=reference.tokens,
        reference_seconds=referenced - began,
        step_seconds=time.perf_counter() - referenced,
        steps=tuple(steps),
    )


def reference_pass(iteration: Iteration) -> Tally:
    """Fill `iteration.references` with the present weights' log-probs; returns gap and token counts of this rank."""

    def collect(device: Device, found: TokenLogps, tally: Tally) -> Tensor:
        _refer(iteration, device, found, tally)
        tally.tokens += int(device.mask_BL.sum())
        return found.logps_BL.new_zeros(())

    with torch.no_grad():
        return _run(iteration, iteration.loader.all(), collect, forward_only=True)


def _refer(iteration: Iteration, device: Device, found: TokenLogps, tally: Tally) -> None:
    """Keep a micro-batch's log-probs as its reference, and add to the gap. They and the engine's must be numbers."""
    logps_BL = found.logps_BL.detach()
    iteration.references[device.micro.index] = logps_BL
    gap, tokens = weights_gap(logps_BL, device.behaviour_BL, device.on_policy_BL)
    tally.gap += gap
    tally.on_policy += tokens
    tally.bad += _bad(device, (logps_BL + device.behaviour_BL).sum(dim=-1))


def optimizer_step(iteration: Iteration, micros: Micros, where: str, *, refers: bool) -> tuple[StepStats, Tally]:
    """One update over the samples of `micros`; with `refers` its forward pass gives the references.

    NumericsError, before the update, for a loss or gradient that is not finite.
    """
    rank, settings = iteration.rank, iteration.settings
    scale = rank.loss_scale(len(micros))
    what = "log-probs or loss" if refers else "loss"

    def loss(device: Device, found: TokenLogps, tally: Tally) -> Tensor:
        if refers:
            _refer(iteration, device, found, tally)
        parts = policy_loss(
            found.logps_BL,
            iteration.references[device.micro.index],
            device.mask_BL,
            device.advantage_B,
            device.weight_B,
            settings.tau,
        )
        tally.loss += float(parts.loss.detach())
        real_B = device.weight_B > 0
        tally.log_ratio += float(parts.log_ratio_B[real_B].sum())
        tally.samples += int(real_B.sum())
        assert found.entropy_BL is not None, "asked for in every pass that trains"
        tally.entropy += float((found.entropy_BL * device.mask_BL).sum())
        tally.tokens += int(device.mask_BL.sum())
        tally.bad += _bad(device, parts.each_B)
        return parts.loss * scale

    rank.optimizer.zero_grad()
    total = _run(iteration, micros, loss, forward_only=False).over_ranks(rank)
    _require_finite(rank, total, what, where)
    norm = rank.optimizer.step()
    if not math.isfinite(norm):
        raise NumericsError(f"the norm of the gradient is {norm}, of a loss that is finite", where=where, mend=MEND)
    stats = StepStats(
        loss=total.loss,
        grad_norm=norm,
        clipped=max(0.0, 1.0 - settings.clip_grad / norm) if settings.clip_grad > 0 < norm else 0.0,
        log_ratio=mean_or_nan(total.log_ratio, total.samples),
        entropy=mean_or_nan(total.entropy, total.tokens),
    )
    return stats, total


def _bad(device: Device, each_B: Tensor) -> list[int]:
    """Trajectories of the micro-batch whose number is not finite."""
    bad_B = ~torch.isfinite(each_B)
    if not bool(bad_B.any()):
        return []
    return [one for one, bad in zip(device.micro.trajectories, bad_B.tolist(), strict=False) if bad]


def _require_finite(rank: RankModel, total: Tally, what: str, where: str) -> None:
    """NumericsError on every rank, with the trajectories, when there are bad ones anywhere. Collective."""
    if total.bad_count == 0 and math.isfinite(total.loss):
        return
    mine = sorted(set(total.bad))[:NAMED]
    padded = torch.tensor([*mine, *[-1] * (NAMED - len(mine))], dtype=torch.int64, device=rank.machine.device)
    every = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
    dist.all_gather(every, padded)
    named = sorted({one for each in every for one in each.tolist() if one >= 0})[:NAMED]
    more = total.bad_count - len(named)
    listed = ", ".join(map(str, named)) + (f" and {more} more" if more > 0 else "")
    raise NumericsError(f"{what} of trajectories {listed or 'unknown'} are not finite", where=where, mend=MEND)


Consume = Callable[[Device, TokenLogps, Tally], Tensor]


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
            entropy=not forward_only,
            chunk_bytes=rank.chunk_bytes,
        )
        return consume(device, found, tally), None

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


def mean(values: list[float]) -> float:
    """Of one value at least."""
    return sum(values) / len(values)


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
