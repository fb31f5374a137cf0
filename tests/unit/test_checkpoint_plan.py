"""What to fetch from whom: tables of sources, failures and moves. No clock, no bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpod.arena import plan_layout
from twinpod.checkpoint.plan import (
    TRIES,
    Ask,
    Check,
    GiveUp,
    Source,
    Transfer,
    Wait,
    asked,
    disproved,
    failed,
    is_here,
    next_move,
    plan_fetch,
    received,
)
from twinpod.checkpoint.versions import compose
from twinpod.records.weights import ServeRequest, ShardRecord, ShardSource, TensorPart

PART = TensorPart(name="w", dtype="F32", shape=(25,), full_shape=(25,), axis=None, start=0, offset=0, nbytes=0)


def shard(owner: str = "hybrid-0/rank-0", address: str = "hybrid-0:7401", name: str = "w") -> ShardRecord:
    layout = plan_layout(owner, [replace(PART, name=name)])
    return ShardRecord(layout=layout, path="/x", slot=0, digest="xxh3:0", address=address)


def transfer(*sources: str, **more: object) -> Transfer:
    """A hundred bytes from these."""
    base = Transfer(shard=shard(), end=100, sources=tuple(Source(address=address) for address in sources))
    return replace(base, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "host", "here"),
    [
        ("hybrid-0:7401", "hybrid-0", True),
        ("hybrid-0:7402", "hybrid-0", True),
        ("hybrid-1:7401", "hybrid-0", False),
        ("hybrid-0.job.ns.svc:7401", "hybrid-0", False),
        ("", "hybrid-0", True),
    ],
)
def test_a_shard_is_here_when_its_host_is_ours(address: str, host: str, here: bool) -> None:
    assert is_here(address, host) is here


def test_only_what_is_away_is_fetched_and_all_who_are_named_are_sources_once() -> None:
    version = compose(3, 1, 3, [shard("a/rank-0", "a:1", "w"), shard("b/rank-1", "b:1", "v")])
    sources = (
        ShardSource(owner="b/rank-1", addresses=("c:1", "b:1", "a:2", "d:1")),
        ShardSource(owner="z/rank-9", addresses=("z:1",)),
    )
    (only,) = plan_fetch(ServeRequest(weights=version, sources=sources), "a")
    assert only.shard.layout.owner == "b/rank-1"
    assert sorted(source.address for source in only.sources) == ["b:1", "c:1", "d:1"]
    assert only.end == 100


def test_many_receivers_begin_at_different_sources() -> None:
    version = compose(1, 1, 1, [shard("a/rank-0", "a:1")])
    serving = ServeRequest(weights=version, sources=(ShardSource(owner="a/rank-0", addresses=("b:1", "c:1")),))
    first = [plan_fetch(serving, f"pool-{number}")[0].sources[0].address for number in range(60)]
    assert all(first.count(address) > 8 for address in ("a:1", "b:1", "c:1"))


MOVES = [
    ("the first source", transfer("a:1", "b:1"), Ask("a:1", 0)),
    ("all is here", transfer("a:1", done=100), Check()),
    (
        "go on where it broke off, at another",
        failed(received(transfer("a:1", "b:1"), "a:1", 60), "a:1", "x", 0),
        Ask("b:1", 60),
    ),
    ("a failed one waits", failed(transfer("a:1"), "a:1", "x", 0), Wait(0.2)),
    ("a second failure waits longer", failed(failed(transfer("a:1"), "a:1", "x", 0), "a:1", "x", 0), Wait(0.4)),
    ("nobody is named", transfer(), GiveUp("nobody is named who has it")),
    (
        "a single giver of wrong bytes is not asked again",
        disproved(received(transfer("a:1", "b:1"), "a:1", 100), "xxh3:1"),
        Ask("b:1", 0),
    ),
    (
        "of two givers nobody is blamed, and it begins anew",
        disproved(received(received(transfer("a:1", "b:1"), "a:1", 40), "b:1", 60), "xxh3:1"),
        Ask("a:1", 0),
    ),
    (
        "after wrong bytes another source does not go on behind them",
        failed(received(transfer("a:1", "b:1", mixing=False), "a:1", 40), "a:1", "x", 0),
        Ask("b:1", 0),
    ),
    (
        "after wrong bytes the same source goes on",
        received(transfer("a:1", mixing=False), "a:1", 40),
        Ask("a:1", 40),
    ),
]


@pytest.mark.parametrize(("state", "move"), [row[1:] for row in MOVES], ids=[row[0] for row in MOVES])
def test_the_next_move(state: Transfer, move: object) -> None:
    assert next_move(state, 0.0) == move


def test_what_a_source_brings_forgives_its_failures() -> None:
    state = failed(transfer("a:1"), "a:1", "x", 0)
    assert received(state, "a:1", 5).sources[0].failures == 0


def test_a_source_that_fails_again_and_again_is_given_up_with_its_last_word() -> None:
    state = transfer("a:1", "b:1")
    for number in range(TRIES):
        state = failed(state, "a:1", f"a{number}", 0)
        state = failed(state, "b:1", f"b{number}", 0)
    assert next_move(state, 1e9) == GiveUp(f"a:1: a{TRIES - 1}; b:1: b{TRIES - 1}")


def test_asking_for_all_gives_up_what_was_there() -> None:
    state = received(transfer("a:1"), "a:1", 40)
    assert asked(state, Ask("a:1", 40)) == state
    assert asked(state, Ask("b:1", 0)).done == 0


@given(st.data())
def test_whatever_the_sources_do_it_ends_and_a_shard_is_checked_only_when_it_is_whole(data: st.DataObject) -> None:
    state, now = transfer("a:1", "b:1", "c:1"), 0.0
    for _ in range(400):
        move = next_move(state, now)
        match move:
            case GiveUp():
                return
            case Wait(seconds):
                assert 0 < seconds <= 5.0
                now += seconds
            case Check():
                assert state.done == state.end
                if data.draw(st.booleans()):
                    return
                state = disproved(state, "xxh3:1")
            case Ask(address, begin):
                assert begin in (0, state.done)
                state = asked(state, move)
                if nbytes := data.draw(st.sampled_from([0, 0, 30, 100])):
                    state = received(state, address, min(nbytes, state.end - state.done))
                if state.done < state.end:
                    state = failed(state, address, "x", now)
    raise AssertionError("it does not end")
