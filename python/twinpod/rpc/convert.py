"""Records to protobuf messages and back: the only place that knows both. No I/O.

Every pair is `X_to_pb(record) -> message` and `X_from_pb(message) -> record`. A word that no enum knows is a
ProtocolError that names the field, never a ValueError deep inside a room.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

from twinpod.errors import ProtocolError
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.life import Command, HalfKind, HalfStatus, Reply, Verb
from twinpod.records.rollout import (
    PullRequest,
    Resumption,
    SamplingSettings,
    Segment,
    SegmentKind,
    Stop,
    WorkBatch,
    WorkItem,
    WorkResult,
)
from twinpod.rpc.v1 import half_pb2, master_pb2

E = TypeVar("E", bound=Enum)


def _word(kind: type[E], word: str, where: str) -> E:
    try:
        return kind(word)
    except ValueError as error:
        raise ProtocolError(f"{word!r} is not one of {[member.value for member in kind]}", where=where) from error


def command_to_pb(command: Command) -> half_pb2.Command:
    """For `Half.Execute` and `TrainerLink.NextCommand`."""
    return half_pb2.Command(
        key=command.key,
        verb=command.verb.value,
        epoch=command.epoch,
        iteration=command.iteration,
        version=command.version,
        argument=command.argument,
        deadline_s=command.deadline_s,
    )


def command_from_pb(message: half_pb2.Command) -> Command:
    """ProtocolError for an unknown verb; an empty verb (nothing to do, see `NextCommand`) must be told apart before."""
    return Command(
        key=message.key,
        verb=_word(Verb, message.verb, "Command.verb"),
        epoch=message.epoch,
        iteration=message.iteration,
        version=message.version,
        argument=message.argument,
        deadline_s=message.deadline_s,
    )


def reply_to_pb(reply: Reply) -> half_pb2.Reply:
    """For the answer of `Half.Execute` and for `TrainerLink.Report`."""
    return half_pb2.Reply(
        key=reply.key, error=reply.error, retryable=reply.retryable, seconds=reply.seconds, detail=reply.detail
    )


def reply_from_pb(message: half_pb2.Reply) -> Reply:
    """See `twinpod.rpc.errors.raise_for` for turning a reply's error into an exception."""
    return Reply(
        key=message.key,
        error=message.error,
        retryable=message.retryable,
        seconds=message.seconds,
        detail=message.detail,
    )


def half_status_to_pb(status: HalfStatus) -> half_pb2.HalfStatus:
    """For the answer of `Half.Status`."""
    return half_pb2.HalfStatus(
        pod=status.pod,
        kind=status.kind.value,
        address=status.address,
        state=status.state,
        version=status.version,
        epoch=status.epoch,
        attempt=status.attempt,
        message=status.message,
        pod_attempt=status.pod_attempt,
    )


def half_status_from_pb(message: half_pb2.HalfStatus) -> HalfStatus:
    """ProtocolError for an unknown kind of half."""
    return HalfStatus(
        pod=message.pod,
        kind=_word(HalfKind, message.kind, "HalfStatus.kind"),
        address=message.address,
        state=message.state,
        version=message.version,
        epoch=message.epoch,
        attempt=message.attempt,
        message=message.message,
        pod_attempt=message.pod_attempt,
    )


def resumption_to_pb(resumption: Resumption) -> master_pb2.Resumption:
    """One trajectory of a work item."""
    return master_pb2.Resumption(
        trajectory_id=resumption.trajectory_id, index=resumption.index, tokens=resumption.tokens.tobytes()
    )


def resumption_from_pb(message: master_pb2.Resumption) -> Resumption:
    """One trajectory of a work item."""
    tokens = TokenIds.frombytes(message.tokens, f"Resumption of trajectory {message.trajectory_id}")
    return Resumption(trajectory_id=message.trajectory_id, index=message.index, tokens=tokens)


def sampling_to_pb(sampling: SamplingSettings) -> master_pb2.Sampling:
    """How the engine draws tokens."""
    return master_pb2.Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        segment_tokens=sampling.segment_tokens,
        max_tokens=sampling.max_tokens,
        stop_token_ids=sampling.stop_token_ids,
        repeat_ngram=sampling.repeat_ngram,
        repeat_count=sampling.repeat_count,
    )


def sampling_from_pb(message: master_pb2.Sampling) -> SamplingSettings:
    """How the engine draws tokens."""
    return SamplingSettings(
        temperature=message.temperature,
        top_p=message.top_p,
        segment_tokens=message.segment_tokens,
        max_tokens=message.max_tokens,
        stop_token_ids=tuple(message.stop_token_ids),
        repeat_ngram=message.repeat_ngram,
        repeat_count=message.repeat_count,
    )


def work_item_to_pb(item: WorkItem) -> master_pb2.WorkItem:
    """One request to a rollout worker."""
    return master_pb2.WorkItem(
        item_id=item.item_id,
        group_id=item.group_id,
        version=item.version,
        prompt_tokens=item.prompt_tokens.tobytes(),
        trajectories=[resumption_to_pb(one) for one in item.trajectories],
        sampling=sampling_to_pb(item.sampling),
        seed=item.seed,
    )


def work_item_from_pb(message: master_pb2.WorkItem) -> WorkItem:
    """One request to a rollout worker."""
    return WorkItem(
        item_id=message.item_id,
        group_id=message.group_id,
        version=message.version,
        prompt_tokens=TokenIds.frombytes(message.prompt_tokens, f"WorkItem {message.item_id}"),
        trajectories=tuple(resumption_from_pb(one) for one in message.trajectories),
        sampling=sampling_from_pb(message.sampling),
        seed=message.seed,
    )


def segment_to_pb(segment: Segment) -> master_pb2.Segment:
    """Tokens travel as little-endian int32, log-probs as float32, which is what engines compute them in."""
    return master_pb2.Segment(
        trajectory_id=segment.trajectory_id,
        index=segment.index,
        version=segment.version,
        tokens=segment.tokens.tobytes(),
        logps=segment.logps.tobytes(),
        stop=segment.stop.value,
        pod=segment.pod,
        kind=segment.kind.value,
    )


def segment_from_pb(message: master_pb2.Segment) -> Segment:
    """ProtocolError for an unknown stop or kind, or when tokens and log-probs do not match in number."""
    where = f"Segment of {message.pod}"
    tokens, logps = TokenIds.frombytes(message.tokens, where), LogProbs.frombytes(message.logps, where)
    kind = _word(SegmentKind, message.kind, "Segment.kind")
    if len(logps) != (len(tokens) if kind is SegmentKind.GENERATED else 0):
        raise ProtocolError(
            f"trajectory {message.trajectory_id}, segment {message.index}: {len(tokens)} {kind.value} tokens"
            f" but {len(logps)} log-probs",
            where=where,
        )
    return Segment(
        trajectory_id=message.trajectory_id,
        index=message.index,
        version=message.version,
        tokens=tokens,
        logps=logps,
        stop=_word(Stop, message.stop, "Segment.stop"),
        pod=message.pod,
        kind=kind,
    )


def work_result_to_pb(result: WorkResult) -> master_pb2.WorkResult:
    """A worker's answer to a work item."""
    return master_pb2.WorkResult(
        item_id=result.item_id,
        worker=result.worker,
        segments=[segment_to_pb(segment) for segment in result.segments],
        failed=result.failed,
        refused_versions=result.refused_versions,
        seconds=result.seconds,
        trajectories=result.trajectories,
    )


def work_result_from_pb(message: master_pb2.WorkResult) -> WorkResult:
    """A worker's answer to a work item."""
    return WorkResult(
        item_id=message.item_id,
        worker=message.worker,
        segments=tuple(segment_from_pb(segment) for segment in message.segments),
        failed=message.failed,
        refused_versions=message.refused_versions,
        seconds=message.seconds,
        trajectories=tuple(message.trajectories),
    )


def pull_to_pb(pull: PullRequest) -> master_pb2.PullRequest:
    """A worker's request for work."""
    return master_pb2.PullRequest(
        worker=pull.worker,
        epoch=pull.epoch,
        version=pull.version,
        capacity=pull.capacity,
        wait_s=pull.wait_s,
        holding=pull.holding,
        tokens_generated=pull.tokens_generated,
    )


def pull_from_pb(message: master_pb2.PullRequest) -> PullRequest:
    """A worker's request for work."""
    return PullRequest(
        worker=message.worker,
        epoch=message.epoch,
        version=message.version,
        capacity=message.capacity,
        wait_s=message.wait_s,
        holding=tuple(message.holding),
        tokens_generated=message.tokens_generated,
    )


def work_batch_to_pb(batch: WorkBatch) -> master_pb2.WorkBatch:
    """The master's answer to a pull."""
    return master_pb2.WorkBatch(
        epoch=batch.epoch,
        iteration=batch.iteration,
        version=batch.version,
        cut=batch.cut,
        items=[work_item_to_pb(item) for item in batch.items],
    )


def work_batch_from_pb(message: master_pb2.WorkBatch) -> WorkBatch:
    """The master's answer to a pull."""
    return WorkBatch(
        epoch=message.epoch,
        iteration=message.iteration,
        version=message.version,
        cut=message.cut,
        items=tuple(work_item_from_pb(item) for item in message.items),
    )
