"""Prompts, groups, trajectories and segments, and the work that travels between master and rollout workers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from twinpod.records.arrays import LogProbs, TokenIds


class Stop(StrEnum):
    """Why a segment ended."""

    EOS = "eos"  # the model ended its answer: terminal
    LENGTH = "length"  # maxTokens of the trajectory: terminal
    REPEAT = "repeat"  # repeat detection: terminal
    BUDGET = "budget"  # segmentTokens of this iteration: goes on in a later one
    CUT = "cut"  # the phase ended while it ran: goes on in a later one

    @property
    def terminal(self) -> bool:
        """True when the trajectory is finished and gets a reward."""
        return self in (Stop.EOS, Stop.LENGTH, Stop.REPEAT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One problem of the data set. `prompt_id` is stable across restarts; `epoch` counts passes over the set."""

    prompt_id: int
    text: str
    answer: str  # reference answer, or JSON for the data set's own verifier
    difficulty: float  # 0 easy .. 1 hard; 0 when unknown
    tokens: TokenIds  # template applied


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How the engine draws tokens."""

    temperature: float
    top_p: float
    segment_tokens: int  # most new tokens a trajectory in one iteration
    max_tokens: int  # most new tokens a trajectory in all
    stop_token_ids: tuple[int, ...]
    repeat_ngram: int  # length of the repeated n-gram; 0 switches detection off
    repeat_count: int  # occurrences in a row that count as a repeat


class SegmentKind(StrEnum):
    """Where the tokens of a segment come from."""

    GENERATED = "generated"  # by an engine: log-probs, one weight version, may be in the loss
    GIVEN = "given"  # by the environment (a later turn, a tool's output): context only, never in the loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Tokens that one engine generated for a trajectory in one go, under one weight version; or tokens given to it."""

    trajectory_id: int
    index: int  # 0, 1, .. within the trajectory
    version: int  # weight version of all its tokens; 0 when given
    tokens: TokenIds  # the stop token included
    logps: LogProbs  # behaviour log-probs at the sampling temperature, one a token; empty when given
    stop: Stop
    pod: str  # who generated it; empty when given
    kind: SegmentKind = SegmentKind.GENERATED


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem:
    """One request to a rollout worker: some trajectories of one group that share a prefix, or a resumed one."""

    item_id: str  # idempotency key: job epoch, iteration, running number
    group_id: int
    version: int  # the only weight version that may answer
    prompt_tokens: TokenIds
    trajectories: tuple[Resumption, ...]
    sampling: SamplingSettings
    seed: int  # the job's; with the trajectory's id the seed of its draws


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """One trajectory to begin or to go on with."""

    trajectory_id: int
    index: int  # of the segment to be made
    tokens: TokenIds  # everything after the prompt so far; empty at the beginning


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkResult:
    """What a worker is done with of a work item: its trajectories come back as each ends, in several results.

    What is not done is given back (`failed`), never dropped in silence.
    """

    item_id: str
    worker: str
    trajectories: tuple[int, ...]  # of the item that the worker is done with now; one without a segment is given back
    segments: tuple[Segment, ...]
    failed: str  # empty, or what went wrong with those that have no segment
    refused_versions: int  # answers thrown away because another version made them
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """A worker's request for work."""

    worker: str
    epoch: int  # newest job epoch that the worker has seen
    version: int  # weights that its engine serves
    capacity: int  # trajectories that it can take on now
    wait_s: float  # longest the master may keep it waiting
    tokens_generated: int  # since its last pull that was answered: a sign of life
    # items that it has and has not given back; an item missing here was lost on the way and is free again
    holding: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkBatch:
    """The master's answer."""

    epoch: int
    iteration: int
    version: int
    cut: bool  # abort what runs, give it back, then pull again
    items: tuple[WorkItem, ...]


class GroupState(StrEnum):
    """Life of a group of k trajectories."""

    OPEN = "open"  # some trajectories are not terminal
    FINISHED = "finished"  # all terminal, rewards given, not trained yet
    TRAINED = "trained"
    DROPPED = "dropped"  # too old, or masked (judge unreachable); counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One attempt at a prompt, a chain of segments."""

    trajectory_id: int
    group_id: int
    segments: tuple[Segment, ...]
    reward: float | None  # None until terminal

    @property
    def tokens(self) -> TokenIds:
        """All ids after the prompt, in order."""
        return TokenIds.joined(segment.tokens for segment in self.segments)

    @property
    def terminal(self) -> bool:
        """True when nothing more is to be generated."""
        return bool(self.segments) and self.segments[-1].stop.terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The k trajectories of one prompt in one pass over the data."""

    group_id: int
    epoch: int  # pass over the data set
    prompt: Prompt
    born: int  # iteration in which it was first dispatched
    state: GroupState
    trajectories: tuple[Trajectory, ...]
