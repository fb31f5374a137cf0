"""The worker: nothing is lost, nothing is answered by the wrong weights, fast engines get more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from twinpod.errors import ProtocolError, Unreachable
from twinpod.records.arrays import TokenIds
from twinpod.records.rollout import PullRequest, Resumption, SamplingSettings, Stop, WorkBatch, WorkItem, WorkResult
from twinpod.rollout.ports import EngineOutput, EngineRequest
from twinpod.rollout.worker import Worker, WorkerSettings
from twinpod.testing.rollout import FakeEngine, FakeMaster, FakeSource

EOS = 1
QUICK = WorkerSettings(capacity=64, pull_wait_s=0.02, pause_s=0.001, retry_s=0.001, retry_most_s=0.004, cut_s=0.5)
SETTINGS = SamplingSettings(
    temperature=1, top_p=1, segment_tokens=8, max_tokens=8, stop_token_ids=(EOS,), repeat_ngram=0, repeat_count=0
)


def item(number: int, k: int = 2, *, version: int = 1, **changes: object) -> WorkItem:
    return WorkItem(
        item_id=f"1/1/{number}",
        group_id=number,
        version=version,
        prompt_tokens=TokenIds((40 + number,)),
        trajectories=tuple(
            Resumption(trajectory_id=number * 100 + place, index=0, tokens=TokenIds()) for place in range(k)
        ),
        sampling=replace(SETTINGS, **changes),
        seed=0,
    )


def count_to_end(request: EngineRequest) -> tuple[int, ...]:
    """Four tokens and the end; the first tells the prompt."""
    return (request.tokens[0], 5, 6, 7, EOS)


@asynccontextmanager
async def working(
    master: object, source: FakeSource, name: str = "a", settings: WorkerSettings = QUICK
) -> AsyncIterator[asyncio.Event]:
    stop = asyncio.Event()
    task = asyncio.create_task(Worker(name, master, source, settings).run(stop))  # type: ignore[arg-type]
    try:
        yield stop
    finally:
        stop.set()
        await asyncio.wait_for(task, 5)


def trajectories(results: Sequence[WorkResult]) -> list[int]:
    return sorted(segment.trajectory_id for result in results for segment in result.segments)


async def until(true: object) -> None:
    """Let everybody work until it is so."""
    async with asyncio.timeout(5):
        while not true():  # type: ignore[operator]
            await asyncio.sleep(0)


async def test_items_become_segments_once_each():
    master, engine = FakeMaster([item(n, 3) for n in range(20)]), FakeEngine(count_to_end)
    async with working(master, FakeSource(engine)):
        results = await master.returned(20)
    assert trajectories(results) == [n * 100 + place for n in range(20) for place in range(3)]
    assert {(tuple(s.tokens[1:]), s.stop, s.version, s.pod) for r in results for s in r.segments} == {
        ((5, 6, 7, EOS), Stop.EOS, 1, "a")
    }
    assert {(r.failed, r.refused_versions) for r in results} == {("", 0)}
    assert len(engine.requests) == 60


async def test_it_takes_no_more_than_it_has_room_for():
    master, engine = FakeMaster([item(n, 4) for n in range(8)]), FakeEngine(count_to_end, limit=2)
    async with working(master, FakeSource(engine), settings=replace(QUICK, capacity=10)):
        await until(lambda: len(engine.requests) == 8)
        assert (len(master.given), len(master.free)) == (2, 6)
        await engine.allow(99)
        await master.returned(8)
    assert max(len(p.holding) for p in master.pulls) <= 2


async def test_a_cut_gives_back_what_there_is_and_no_token_twice():
    master, engine = FakeMaster([item(0), item(1)]), FakeEngine(count_to_end, limit=3)
    async with working(master, FakeSource(engine)):
        await until(lambda: len(engine.requests) == 4)
        await until(lambda: len(master.pulls) > 1)
        await master.change(cut=True)
        results = await master.returned(2)
    assert trajectories(results) == [0, 1, 100, 101]
    assert {(tuple(s.tokens[1:]), s.stop) for r in results for s in r.segments} == {((5, 6), Stop.CUT)}
    assert engine.aborts >= 1


async def test_a_cut_before_the_first_token_gives_back_the_item_without_segments():
    master, engine = FakeMaster([item(0)]), FakeEngine(count_to_end, limit=0)
    async with working(master, FakeSource(engine)):
        await until(lambda: len(engine.requests) == 2)
        await master.change(cut=True)
        results = await master.returned(1)
    assert {(result.segments, result.failed) for result in results} == {((), "cut before the first token")}


async def test_a_dying_engine_fails_its_items_and_the_next_one_does_new_ones():
    master, old, new = FakeMaster([item(0)]), FakeEngine(count_to_end, limit=3), FakeEngine(count_to_end)
    source = FakeSource(old)
    async with working(master, source):
        await until(lambda: len(old.requests) == 2)
        await old.die()
        (result,) = await master.returned(1)
        assert (result.segments, "connection lost" in result.failed) == ((), True)
        await source.say(None)
        await source.say(new)
        await until(lambda: source.connected == [old, new])
        await master.change(items=[item(0), item(1)])
        results = await master.returned(3)
    assert trajectories(results) == [0, 1, 100, 101]


async def test_a_broken_engine_that_is_still_announced_is_not_asked_in_a_hurry():
    master, engine = FakeMaster([item(n) for n in range(50)]), FakeEngine(count_to_end)
    await engine.die()
    patient = replace(QUICK, retry_s=0.01, retry_most_s=60.0, capacity=2)
    began = asyncio.get_running_loop().time()
    async with working(master, FakeSource(engine), settings=patient):
        await until(lambda: len(engine.requests) >= 8)
        assert asyncio.get_running_loop().time() - began >= 0.01 + 0.02 + 0.04


async def test_answers_of_another_version_are_refused_and_counted():
    liar = FakeEngine(count_to_end, version=1)
    source = FakeSource(liar)
    master = FakeMaster([item(0, 3)])
    async with working(master, source):
        liar.limit = 3
        await until(lambda: len(liar.requests) == 3)
        liar.version = 2  # its weights change under the work
        await liar.allow(99)
        results = await master.returned(1)
    assert (trajectories(results), sum(result.refused_versions for result in results)) == ([], 3)
    assert all("asked for weights 1, answered by 2" in result.failed for result in results)


async def test_an_item_for_other_weights_is_not_even_begun():
    master, engine = FakeMaster([item(0, version=2)]), FakeEngine(count_to_end)
    async with working(master, FakeSource(engine)):
        (result,) = await master.returned(1)
    assert result.failed == "wants weights 2, the engine serves 1"
    assert (result.refused_versions, engine.requests) == (2, [])


async def test_a_repeating_answer_is_stopped_while_it_is_generated():
    loops = FakeEngine(lambda request: (5, 6) * 2000)
    master = FakeMaster([item(0, 1, segment_tokens=4000, max_tokens=4000, repeat_ngram=2, repeat_count=4)])
    made: list[int] = []
    plain = loops._output
    loops._output = lambda r, tokens, f: (made.append(len(tokens)), plain(r, tokens, f))[1]  # type: ignore[method-assign]
    async with working(master, FakeSource(loops)):
        (result,) = await master.returned(1)
    assert [(tuple(s.tokens), s.stop) for s in result.segments] == [((5, 6) * 4, Stop.REPEAT)]
    assert max(made) < 200


async def test_no_engine_means_no_pull():
    master, source = FakeMaster([item(0)]), FakeSource(None)
    async with working(master, source):
        for _ in range(20):
            await asyncio.sleep(0)
        assert master.pulls == []
        await source.say(FakeEngine(count_to_end))
        await master.returned(1)


class Flaky(FakeMaster):
    """Every second answer is lost on its way, after it was acted on."""

    def __init__(self, items: Sequence[WorkItem]) -> None:
        super().__init__(items)
        self.calls = 0

    async def pull(self, pull: PullRequest) -> WorkBatch:
        answer = await super().pull(pull)
        return self.lose(answer)

    async def give(self, epoch: int, results: Sequence[WorkResult]) -> None:
        await super().give(epoch, results)
        self.lose(None)

    def lose(self, answer: object) -> object:
        self.calls += 1
        if self.calls % 2:
            raise Unreachable("the line broke", where="master")
        return answer


async def test_answers_lost_on_the_way_cost_nothing():
    master = Flaky([item(n) for n in range(30)])
    async with working(master, FakeSource(FakeEngine(count_to_end)), settings=replace(QUICK, capacity=8)):
        results = await master.returned(30)
    assert trajectories(results) == [n * 100 + place for n in range(30) for place in range(2)]


async def test_a_newer_master_gets_what_was_running_and_an_older_one_is_not_obeyed():
    master, engine = FakeMaster([item(0)]), FakeEngine(count_to_end, limit=2)
    async with working(master, FakeSource(engine)):
        await until(lambda: len(engine.requests) == 2)
        await master.change(items=[item(1)], epoch=2)  # refuses what belongs to epoch 1
        await until(lambda: len(engine.requests) == 4)
        await engine.allow(99)
        results = await master.returned(2)  # what epoch 1 lost is generated for epoch 2
        assert trajectories(results) == [0, 1, 100, 101]
        begun, pulls = len(engine.requests), len(master.pulls)
        await master.change(items=[item(2)], epoch=1)
        await until(lambda: len(master.pulls) > pulls + 3)
        assert len(engine.requests) == begun


async def test_told_to_stop_it_gives_back_first():
    master, engine = FakeMaster([item(0)]), FakeEngine(count_to_end, limit=2)
    async with working(master, FakeSource(engine)) as stop:
        await until(lambda: len(engine.requests) == 2)
        await until(lambda: len(master.pulls) > 1)
        stop.set()
        results = await master.returned(1)
    assert {s.stop for result in results for s in result.segments} == {Stop.CUT}


class Picky(FakeEngine):
    """Refuses a whole call when one request in it is wrong, as SGLang does."""

    async def generate(self, requests: Sequence[EngineRequest]) -> AsyncIterator[EngineOutput]:
        if any(request.tokens[0] == 43 for request in requests):
            raise ProtocolError("refused with status 400: too long", where="engine")
        async for output in super().generate(requests):
            yield output


async def test_one_request_that_the_engine_refuses_does_not_take_others_with_it():
    master = FakeMaster([item(n) for n in range(6)])
    async with working(master, FakeSource(Picky(count_to_end))):
        results = await master.returned(6)
    assert {r.item_id: r.failed for r in results if r.failed} == {"1/1/3": "engine: refused with status 400: too long"}
    assert len(trajectories(results)) == 10


class Deaf(FakeEngine):
    """Does not obey an abort."""

    async def abort_all(self) -> None:
        self.aborts += 1


async def test_an_engine_that_does_not_obey_a_cut_is_given_up():
    master, engine = FakeMaster([item(0)]), Deaf(count_to_end, limit=2)
    async with working(master, FakeSource(engine), settings=replace(QUICK, cut_s=0.05, abort_again_s=0.005)):
        await until(lambda: len(engine.requests) == 2)
        await master.change(cut=True)
        (result,) = await master.returned(1)
    assert "did not obey" in result.failed
    assert engine.aborts >= 1


class Broken(FakeMaster):
    """Gives work; taking it back meets a fault of ours."""

    async def give(self, epoch: int, results: Sequence[WorkResult]) -> None:
        raise ValueError("a fault")


async def test_a_fault_in_giving_ends_the_worker_instead_of_leaving_it_to_give_nothing_back():
    worker = Worker("a", Broken([item(0)]), FakeSource(FakeEngine(count_to_end)), replace(QUICK, farewell_s=0.01))
    with pytest.raises(ValueError, match="a fault"):
        await asyncio.wait_for(worker.run(asyncio.Event()), 5)


@pytest.mark.parametrize("ratio", [4])
async def test_two_workers_of_unequal_speed_get_work_by_what_they_finish(ratio):
    master = FakeMaster([item(n, 1) for n in range(100)])
    fast, slow = FakeEngine(count_to_end), FakeEngine(count_to_end)
    plain = slow._run

    async def late(request: EngineRequest, outputs: asyncio.Queue[EngineOutput]) -> None:
        for _ in range(200):  # turns of the event loop
            await asyncio.sleep(0)
        await plain(request, outputs)

    slow._run = late  # type: ignore[method-assign]
    few = replace(QUICK, capacity=4)
    async with working(master, FakeSource(fast), "fast", few), working(master, FakeSource(slow), "slow", few):
        results = await master.returned(100)
    done = {name: sum(r.worker == name for r in results) for name in ("fast", "slow")}
    assert done["fast"] > ratio * done["slow"] > 0
    assert len(set(trajectories(results))) == 100
