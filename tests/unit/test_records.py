"""Records survive the trip through JSON, and JSON that does not fit is refused by the name of its field."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpod.errors import ProtocolError
from twinpod.records import codec
from twinpod.records.life import Command, HalfKind, HalfStatus, Verb
from twinpod.records.rollout import Stop
from twinpod.records.training import TrainSettings
from twinpod.records.weights import ShardLayout, TensorPart

PART = TensorPart(name="w", dtype="F32", shape=(2, 3), full_shape=(4, 3), axis=0, start=2, offset=256, nbytes=24)
LAYOUT = ShardLayout(owner="hybrid-0/rank-1", slot_bytes=4096, parts=(PART,))
COMMAND = Command(key="1/2", verb=Verb.TRAIN, epoch=1, iteration=2, version=3, argument="", deadline_s=0.5)
SETTINGS = TrainSettings(
    learning_rate=1e-6,
    betas=(0.9, 0.95),
    weight_decay=0.0,
    eps=1e-8,
    tau=0.1,
    temperature=1.0,
    mask="all",
    steps=1,
    clip_grad=1.0,
    micro_batch_tokens=512,
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


@pytest.mark.parametrize("record", [PART, LAYOUT, COMMAND, SETTINGS, STATUS], ids=lambda record: type(record).__name__)
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
        codec.loads(Command, json.dumps(codec.plain(COMMAND) | {"verb": "finished"}))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(["name", "shape", "axis", "nbytes", "part", "state", "verb", "betas", "tau"]),
)
def test_the_quick_way_and_the_slow_way_read_the_same(value: object, field: str) -> None:
    for record in (PART, LAYOUT, COMMAND, SETTINGS, STATUS):
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
