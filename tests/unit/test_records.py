"""Records survive the trip through JSON, and JSON that does not fit is refused by the name of its field."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpod.errors import ProtocolError
from twinpod.records import codec
from twinpod.records.life import HalfKind, HalfStatus
from twinpod.records.rollout import Segment, Stop
from twinpod.records.weights import ShardLayout, TensorPart

PART = TensorPart(name="w", dtype="F32", shape=(2, 3), full_shape=(4, 3), axis=0, start=2, offset=256, nbytes=24)
LAYOUT = ShardLayout(owner="hybrid-0/rank-1", slot_bytes=4096, parts=(PART,))
SEGMENT = Segment(
    trajectory_id=7, index=1, version=3, tokens=(4, 5), logps=(-0.5, -1.0), stop=Stop.CUT, pod="x-hybrid-0"
)
STATUS = HalfStatus(
    pod="x-hybrid-0",
    kind=HalfKind.INFERENCE,
    address="x-hybrid-0:7402",
    state="serving",
    version=3,
    epoch=1,
    pod_attempt=1,
    attempt=0,
    message="",
)


@pytest.mark.parametrize("record", [PART, LAYOUT, SEGMENT, STATUS], ids=lambda record: type(record).__name__)
def test_a_record_comes_back_equal(record: object) -> None:
    assert codec.loads(type(record), codec.dumps(record)) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axis": "0"}, "TensorPart.axis: expected int"),
        ({"shape": [1, "x"]}, r"TensorPart.shape\[1\]: expected int"),
        ({"extra": 1}, r"unknown fields \['extra'\]"),
        ({"offset": True}, "TensorPart.offset: expected int"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        codec.loads(TensorPart, json.dumps(codec.plain(PART) | change))


def test_a_missing_field_is_named() -> None:
    value = codec.plain(PART)
    del value["nbytes"]
    with pytest.raises(ProtocolError, match=r"missing fields \['nbytes'\]"):
        codec.loads(TensorPart, json.dumps(value))


def test_an_unknown_word_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ProtocolError, match="'finished' is not one of"):
        codec.loads(Segment, json.dumps(codec.plain(SEGMENT) | {"stop": "finished"}))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(["name", "shape", "axis", "nbytes", "part", "state", "tokens", "logps"]),
)
def test_the_quick_way_and_the_slow_way_read_the_same(value: object, field: str) -> None:
    for record in (PART, LAYOUT, SEGMENT, STATUS):
        content = codec.plain(record)
        if field in content:
            content[field] = value
        try:
            slow = codec._build(type(record), content, "")
        except ProtocolError:
            slow = None
        try:
            quick = codec.loads(type(record), json.dumps(content))
        except ProtocolError:
            quick = None
        assert quick == slow


@pytest.mark.parametrize(
    ("stop", "terminal"),
    [(Stop.EOS, True), (Stop.LENGTH, True), (Stop.REPEAT, True), (Stop.BUDGET, False), (Stop.CUT, False)],
)
def test_a_cut_is_never_the_end_of_a_trajectory(stop: Stop, terminal: bool) -> None:
    assert stop.terminal is terminal
