"""Which groups wait, which are too old, which are trained now, and what a batch of them looks like. Pure.

A group is held until its k trajectories are terminal and scored (paper.md 2, design 8.2). A trajectory that no judge
could score is masked: it stays out of the batch and its group goes on with the others, as long as two remain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from twinpod.records.rollout import Group, SegmentKind, Trajectory
from twinpod.records.training import Batch, Sample
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


def build_batch(
    groups: Sequence[Group], *, iteration: int, version: int, baseline: Baseline, tau: float, size: int
) -> Batch:
    """The batch of `groups` in order.

    `size` is k. Masks by version are the trainer's job, through `Sample.versions`.
    """
    samples: list[Sample] = []
    for number, group in enumerate(groups):
        scored = [(trajectory, trajectory.reward) for trajectory in group.trajectories if trajectory.reward is not None]
        numbers = advantages([reward for _, reward in scored], baseline, tau)
        samples += [
            _sample(number, group, *pair, float(advantage)) for pair, advantage in zip(scored, numbers, strict=True)
        ]
    return Batch(iteration=iteration, version=version, group_size=size, samples=tuple(samples))


def _sample(number: int, group: Group, trajectory: Trajectory, reward: float, advantage: float) -> Sample:
    segments = trajectory.segments
    assert all(one.kind is SegmentKind.GENERATED for one in segments), "given tokens have no place in a batch yet"
    return Sample(
        group=number,
        prompt_tokens=tuple(group.prompt.tokens),
        response_tokens=tuple(trajectory.tokens),
        behaviour_logps=tuple(logp for segment in segments for logp in segment.logps),
        versions=tuple(segment.version for segment in segments for _ in segment.tokens),
        advantage=advantage,
        reward=reward,
    )
