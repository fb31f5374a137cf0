"""Which groups wait, which are too old, which are trained now, and what the batch of them is. Pure.

A group is held until its k trajectories are terminal and scored (paper.md 2, design 8.2). A trajectory that no judge
could score is masked: it stays out of the batch and its group goes on with the others, as long as two remain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from twinpod.records.training import BatchPlan, PlannedSample
from twinpod.replay.baseline import Baseline, advantages


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What the choice needs to know of a group, without its tokens."""

    group_id: int
    born: int  # iteration of its first dispatch
    oldest: int  # iteration of its oldest segment; equal to `born` or later
    scored: int  # trajectories with a reward
    masked: int  # trajectories that no judge could score
    size: int  # k


def complete(held: Held) -> bool:
    """True when every trajectory has been judged, or given up by its judge."""
    return held.scored + held.masked >= held.size


def usable(held: Held) -> bool:
    """A baseline needs at least two rewards, except for groups of one."""
    return held.scored >= min(2, held.size)


def too_old(oldest: int, now: int, most: int) -> bool:
    """A segment of iteration `oldest` may still be trained in `now` when at most `most` iterations lie between."""
    return now - oldest > most


def choose(groups: Iterable[Held], wanted: int) -> tuple[int, ...]:
    """Ids of the groups that make the batch: complete and usable ones, oldest first, at most `wanted`."""
    ready = sorted((held.born, held.group_id) for held in groups if complete(held) and usable(held))
    return tuple(group_id for _, group_id in ready[:wanted])


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What the plan needs to know of a scored trajectory, without its tokens."""

    trajectory_id: int
    group_id: int
    tokens: int  # prompt included
    generated: int
    reward: float


def plan_batch(
    scored: Sequence[Scored],
    *,
    iteration: int,
    version: int,
    baseline: Baseline,
    tau: float,
    size: int,
    mini_batches: int = 1,
) -> BatchPlan:
    """The batch of the groups that `scored` is of, in order. `size` is k.

    Groups are dealt to the mini-batches in turn, so that old and young ones mix; a group is never divided. A sample
    weighs 1/(groups of its mini-batch x samples of its group): a mean over a group, then a mean over groups.
    """
    groups: dict[int, list[Scored]] = {}
    for one in scored:
        groups.setdefault(one.group_id, []).append(one)
    parts = min(mini_batches, len(groups))
    samples: list[PlannedSample] = []
    for number, group in enumerate(groups.values()):
        mini_batch = number % parts
        together = len(range(mini_batch, len(groups), parts))  # groups of this mini-batch
        for one, advantage in zip(group, advantages([one.reward for one in group], baseline, tau), strict=True):
            samples.append(
                PlannedSample(
                    trajectory_id=one.trajectory_id,
                    group=number,
                    mini_batch=mini_batch,
                    tokens=one.tokens,
                    generated=one.generated,
                    advantage=float(advantage),
                    weight=1.0 / (together * len(group)),
                    reward=one.reward,
                )
            )
    return BatchPlan(iteration=iteration, version=version, group_size=size, mini_batches=parts, samples=tuple(samples))
