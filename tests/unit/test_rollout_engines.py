"""Several engines as one: who gets which sequence, whose outputs come, what an abort and a death do."""

from __future__ import annotations

import asyncio

import pytest

from twinpod.errors import EngineFault
from twinpod.records.arrays import TokenIds
from twinpod.rollout.engines import Engines, several
from twinpod.rollout.ports import EngineOutput, EngineRequest, Finish
from twinpod.testing.rollout import FakeEngine


def request(name: str) -> EngineRequest:
    return EngineRequest(
        name=name,
        tokens=TokenIds((1,)),
        max_new_tokens=4,
        temperature=1.0,
        top_p=1.0,
        stop_token_ids=(),
        seed=0,
        report_every=32,
    )


def engines(count: int, limit: float = float("inf")) -> list[FakeEngine]:
    return [FakeEngine(lambda _: (5, 6, 7, 8), limit=limit) for _ in range(count)]


def names(engine: FakeEngine) -> list[str]:
    return [one.name for one in engine.requests]


async def all_of(port: Engines, requests: list[EngineRequest]) -> list[EngineOutput]:
    return [output async for output in port.generate(requests)]


def test_a_lone_engine_stays_itself() -> None:
    (lone,) = engines(1)
    assert several([lone]) is lone


async def test_sequences_are_spread_and_every_output_comes() -> None:
    three = engines(3)
    outputs = await all_of(Engines(three), [request(str(number)) for number in range(7)])
    assert sorted(output.name for output in outputs) == [str(number) for number in range(7)]
    assert {output.finish for output in outputs} == {Finish.LENGTH}
    assert [len(one.requests) for one in three] == [3, 2, 2]


async def test_the_next_sequences_go_where_fewest_run() -> None:
    busy, free = engines(1, limit=0)[0], engines(1)[0]
    port = Engines([busy, free])
    first = asyncio.create_task(all_of(port, [request("a"), request("b")]))
    await asyncio.wait([first], timeout=0)
    while "b" in port._at:
        await asyncio.sleep(0)
    second = asyncio.create_task(all_of(port, [request("c")]))
    await second
    assert names(free) == ["b", "c"]
    await busy.allow(10)
    await first
    assert port._running == [0, 0]


async def test_an_abort_goes_to_the_engine_that_has_the_sequence() -> None:
    both = engines(2, limit=0)
    port = Engines(both)
    running = asyncio.create_task(all_of(port, [request("a"), request("b")]))
    while not both[1].requests:
        await asyncio.sleep(0)
    await port.abort("b")
    assert both[0]._cut == set()
    await port.abort_all()
    outputs = await running
    assert {output.finish for output in outputs} == {Finish.ABORT}


async def test_a_lost_engine_ends_the_stream_and_frees_the_places() -> None:
    both = engines(2, limit=0)
    port = Engines(both)
    running = asyncio.create_task(all_of(port, [request("a"), request("b")]))
    while not both[1].requests:
        await asyncio.sleep(0)
    await both[1].die()
    with pytest.raises(EngineFault, match="connection lost"):
        await running
    assert port._running == [0, 0]
