"""A rank's samples on the wire: bounded messages, whole again on the other side, and nothing else is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpod.errors import ProtocolError
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.training import GIVEN, RankBatch, Sample, TokenRun
from twinpod.rpc.batches import BatchReader, batch_parts
from twinpod.rpc.v1 import master_pb2

HEAD = RankBatch(iteration=7, version=5, group_size=4, micro_batches=(3, 2), samples=())


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Chains of given and generated runs, from one token to far more than a message holds."""
    versions = [GIVEN, *draw(st.lists(st.integers(GIVEN, 9), max_size=6))]
    runs = [TokenRun(version=version, count=draw(st.integers(1, 400))) for version in versions]
    total = sum(run.count for run in runs)
    generated = sum(run.count for run in runs if run.version != GIVEN)
    return Sample(
        trajectory_id=draw(st.integers(0, 2**40)),
        group=draw(st.integers(0, 1000)),
        mini_batch=draw(st.integers(0, 1)),
        micro_batch=draw(st.integers(0, 2)),
        tokens=TokenIds(range(total)),
        logps=LogProbs([-n / 8 for n in range(generated)]),
        runs=tuple(runs),
        advantage=draw(st.floats(-2, 2)),
        weight=draw(st.floats(0, 1)),
        reward=draw(st.floats(-1, 1)),
    )


def read(parts: list[master_pb2.BatchPart]) -> RankBatch:
    reader = BatchReader()
    for part in parts:
        reader.take(part.SerializeToString())
    return reader.batch()


@given(st.lists(samples(), max_size=8), st.integers(300, 2000))
def test_a_batch_comes_whole_in_messages_of_bounded_size(sent: list[Sample], most: int) -> None:
    parts = list(batch_parts(HEAD, sent, len(sent), most))
    assert max(part.ByteSize() for part in parts) <= most + 64
    assert read(parts) == replace(HEAD, samples=tuple(sent))


def one() -> Sample:
    return Sample(
        trajectory_id=1, group=0, mini_batch=0, micro_batch=0, tokens=TokenIds((5, 6, 7)), logps=LogProbs((-1.0,)),
        runs=(TokenRun(version=GIVEN, count=2), TokenRun(version=3, count=1)), advantage=0.0, weight=1.0, reward=0.0,
    )  # fmt: skip


def test_samples_whose_runs_do_not_add_up_are_not_sent() -> None:
    with pytest.raises(ProtocolError, match="trajectory 1 has 3 tokens and 0 log-probs"):
        list(batch_parts(HEAD, [replace(one(), logps=LogProbs())], 1))


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda parts: parts[:1], "ended after 0 of 2"),
        (lambda parts: parts[1:], "has a head"),
        (lambda parts: [*parts, parts[0]], "has a head"),
        (lambda parts: [*parts, master_pb2.BatchPart(data=b"1234")], "4 bytes belong to no sample"),
        (lambda parts: [], "ended after 0"),
    ],
)
def test_a_stream_that_is_not_one_whole_batch_is_refused(spoil, line: str) -> None:
    parts = list(batch_parts(HEAD, [one(), one()], 2, 20))
    assert len(parts) > 2
    with pytest.raises(ProtocolError, match=line):
        read(spoil(parts))
