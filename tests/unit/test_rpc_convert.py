"""Records survive the wire; what a contract forbids is an error that names the field."""

from __future__ import annotations

import math

import pytest

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
from twinpod.rpc import convert
from twinpod.rpc.v1 import half_pb2, master_pb2

COMMAND = Command(key="1/2/serve", verb=Verb.SERVE, epoch=1, iteration=2, version=3, argument="{}", deadline_s=4.5)
REPLY = Reply(key="k", error="EngineFault: é", retryable=True, seconds=1.25, detail="[]")
STATUS = HalfStatus(
    pod="p",
    kind=HalfKind.TRAINING,
    address="a:1",
    state="idle",
    version=3,
    epoch=1,
    pod_attempt=1,
    attempt=2,
    message="m",
)
SEGMENT = Segment(
    trajectory_id=2**40,
    index=1,
    version=7,
    tokens=TokenIds((1, 2)),
    logps=LogProbs((-0.5, -math.inf)),
    stop=Stop.CUT,
    pod="p",
)
GIVEN = Segment(
    trajectory_id=1,
    index=0,
    version=0,
    tokens=TokenIds((4,)),
    logps=LogProbs(),
    stop=Stop.CUT,
    pod="",
    kind=SegmentKind.GIVEN,
)
SAMPLING = SamplingSettings(
    temperature=1.0, top_p=0.5, segment_tokens=2, max_tokens=5, stop_token_ids=(1,), repeat_ngram=0, repeat_count=0
)
ITEM = WorkItem(
    item_id="1/2/3",
    group_id=9,
    version=7,
    prompt_tokens=TokenIds((5, 6)),
    trajectories=(
        Resumption(trajectory_id=1, index=0, tokens=TokenIds()),
        Resumption(trajectory_id=2, index=1, tokens=TokenIds((3,))),
    ),
    sampling=SAMPLING,
    seed=-1,
)
RESULT = WorkResult(
    item_id="1/2/3",
    worker="w",
    trajectories=(2**40, 3),
    segments=(SEGMENT,),
    failed="",
    refused_versions=1,
    seconds=0.5,
)
PULL = PullRequest(
    worker="w", epoch=3, version=7, capacity=4, wait_s=0.5, tokens_generated=99, holding=("1/2/3", "1/2/4")
)
BATCH = WorkBatch(epoch=3, iteration=2, version=7, cut=True, items=(ITEM,))


@pytest.mark.parametrize(
    ("there", "back", "record"),
    [
        (convert.command_to_pb, convert.command_from_pb, COMMAND),
        (convert.reply_to_pb, convert.reply_from_pb, REPLY),
        (convert.half_status_to_pb, convert.half_status_from_pb, STATUS),
        (convert.segment_to_pb, convert.segment_from_pb, SEGMENT),
        (convert.segment_to_pb, convert.segment_from_pb, GIVEN),
        (convert.work_item_to_pb, convert.work_item_from_pb, ITEM),
        (convert.work_result_to_pb, convert.work_result_from_pb, RESULT),
        (convert.pull_to_pb, convert.pull_from_pb, PULL),
        (convert.work_batch_to_pb, convert.work_batch_from_pb, BATCH),
    ],
)
def test_a_record_survives_the_wire(there, back, record) -> None:
    message = there(record)
    assert back(type(message).FromString(message.SerializeToString())) == record


@pytest.mark.parametrize(
    ("back", "message", "line"),
    [
        (convert.command_from_pb, half_pb2.Command(verb="dance"), "Command.verb: 'dance' is not one of"),
        (convert.half_status_from_pb, half_pb2.HalfStatus(kind="x"), "HalfStatus.kind: 'x'"),
        (convert.segment_from_pb, master_pb2.Segment(stop="x", kind="given"), "Segment.stop: 'x'"),
        (convert.segment_from_pb, master_pb2.Segment(kind="x"), "Segment.kind: 'x'"),
        (
            convert.segment_from_pb,
            master_pb2.Segment(tokens=b"1234", pod="p", kind="generated"),
            "1 generated tokens but 0 log-probs",
        ),
        (
            convert.segment_from_pb,
            master_pb2.Segment(tokens=b"1234", logps=b"1234", kind="given"),
            "1 given tokens but 1 log-probs",
        ),
        (convert.segment_from_pb, master_pb2.Segment(tokens=b"123"), "3 bytes are no whole number of int32"),
    ],
)
def test_what_the_contract_forbids_is_named(back, message, line: str) -> None:
    with pytest.raises(ProtocolError, match=line):
        back(message)
