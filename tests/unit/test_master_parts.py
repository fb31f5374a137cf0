"""The master's smaller parts: exit codes, members, orders, registry, phases, health, prompts."""

from __future__ import annotations

import asyncio
import math
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from twinpod.coordination.keys import Keys, VersionNote
from twinpod.coordination.memory import MemoryStore
from twinpod.errors import (
    EngineFault,
    EnvironmentFault,
    InputError,
    IntegrityError,
    StaleEpoch,
    TwinpodError,
    Unreachable,
    WeightsGapError,
)
from twinpod.master.__main__ import exit_code
from twinpod.master.dispatcher import Dispatcher, Patience
from twinpod.master.elastic import stands_idle, whom_to_ask
from twinpod.master.halves import Halves, Order
from twinpod.master.health import Health
from twinpod.master.progress import PhaseTimer, eta_s
from twinpod.master.registry import Registry
from twinpod.master.work_buffer import Ended, Rules, WorkBuffer
from twinpod.master.worker_group import loading_seconds, missing_halves
from twinpod.records.life import Command, EngineState, HalfKind, HalfStatus, Reply, Verb
from twinpod.records.rollout import Group, GroupState, PullRequest, Segment, Trajectory, WorkResult
from twinpod.testing.small_run import generate, prompts, record, settings

KEYS = Keys(namespace="n", job_uid="u")


def member(pod: str, kind: HalfKind, state: str = "none", version: int = 0) -> HalfStatus:
    return HalfStatus(
        pod=pod,
        kind=kind,
        address=f"{pod}/{kind}",
        state=state,
        version=version,
        epoch=0,
        pod_attempt=1,
        attempt=0,
        message="",
    )


TRAINER, ENGINE = member("h-0", HalfKind.TRAINING), member("h-0", HalfKind.INFERENCE)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), 2),
        (EnvironmentFault("disk full"), 1),
        (Unreachable("gone"), 3),
        (EngineFault("oom"), 3),
        (WeightsGapError("gap"), 3),
        (IntegrityError("digest"), 3),
        (StaleEpoch("newer"), 4),
    ],
)
def test_exit_codes_say_whether_to_start_again(error: TwinpodError, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize(
    ("members", "missing"),
    [
        ((), "1 training halves"),
        ((ENGINE,), "1 training halves"),
        ((TRAINER,), "inference half of h-0"),
        ((TRAINER, ENGINE), ""),
        ((TRAINER, member("pool-1", HalfKind.INFERENCE)), "inference half of h-0"),
    ],
)
def test_who_is_missing_at_the_start(members: tuple[HalfStatus, ...], missing: str) -> None:
    assert missing_halves(members, 1) == missing


@pytest.mark.parametrize(
    ("state", "version", "idle"),
    [
        (EngineState.NONE, 0, True),
        (EngineState.IDLE, 3, True),
        (EngineState.STARTING, 0, False),
        (EngineState.LOADING, 2, False),
        (EngineState.SERVING, 3, False),
        (EngineState.SERVING, 2, True),
    ],
)
def test_which_newcomer_is_recruited(state: EngineState, version: int, idle: bool) -> None:
    assert stands_idle(member("p", HalfKind.INFERENCE, state.value, version), 3) is idle
    assert not stands_idle(TRAINER, 3)


@pytest.mark.parametrize(
    ("pod", "state", "version", "asked"),
    [
        ("p-0", EngineState.NONE, 0, True),
        ("p-0", EngineState.SERVING, 3, True),  # says so, but has not told this master
        ("p-0", EngineState.LOADING, 0, True),  # for an older master, perhaps
        ("serving", EngineState.SERVING, 3, False),
        ("serving", EngineState.SERVING, 2, True),
        ("serving", EngineState.IDLE, 0, True),
        ("serving", EngineState.LOADING, 0, False),
        ("h-0", EngineState.SERVING, 3, False),
        ("h-0", EngineState.LOADING, 0, False),
        ("h-0", EngineState.NONE, 0, True),
    ],
)
def test_who_is_told_to_take_the_version(pod: str, state: EngineState, version: int, asked: bool) -> None:
    one = member(pod, HalfKind.INFERENCE, state.value, version)
    assert whom_to_ask((TRAINER, one), 3, frozenset({"h-0"}), {"serving"}) == ((one,) if asked else ())


class Sheet:
    """A sink that keeps what it is given."""

    async def begin(self, count: int) -> list[Group]:
        return []

    async def store(self, results: Sequence[WorkResult]) -> list[Segment]:
        return [segment for result in results for segment in result.segments]

    def judge(self, ended: Sequence[Ended]) -> None:
        return None


@dataclass
class Few:
    """One awaited pod, and helpers that may be let in."""

    helpers: set[str]
    engines: int = 1

    def takes_part(self, pod: str) -> bool:
        return pod == "h-0" or pod in self.helpers

    def is_awaited(self, pod: str) -> bool:
        return pod == "h-0"


def asks(worker: str, tokens: int = 0) -> PullRequest:
    return PullRequest(worker=worker, epoch=1, version=3, capacity=1, wait_s=0.0, tokens_generated=tokens, holding=())


async def test_a_phase_lives_while_tokens_are_made_and_ends_when_none_are() -> None:
    now = [0.0]
    dispatcher = Dispatcher(lambda: now[0], Patience(tick_s=0.001, stall_s=10.0, silent_worker_s=1e9))
    dispatcher.epoch = 1
    sampling = settings().sampling
    buffer = WorkBuffer(rules=Rules(wanted=1, in_flight=1, sampling=sampling, seed=1), epoch=1, iteration=1, version=3)
    blank = Trajectory(trajectory_id=1, group_id=1, segments=(), reward=None)
    one = Group(group_id=1, epoch=0, prompt=prompts(1)[0], born=1, state=GroupState.OPEN, trajectories=(blank,))
    buffer.admit(one, {})
    phase = asyncio.create_task(dispatcher.run(buffer, Sheet(), Few(set()), lambda finished, wanted: None))
    await asyncio.sleep(0)
    (item,) = (await dispatcher.pull(asks("h-0"))).items
    for _ in range(5):  # 45 s without a finished answer
        now[0] += 9.0
        holding = replace(asks("h-0", tokens=32), holding=(item.item_id,))
        await dispatcher.pull(holding)
        await asyncio.sleep(0.005)
        assert not phase.done()
    now[0] += 11.0
    with pytest.raises(Unreachable, match="no token was generated for 10 s"):
        await asyncio.wait_for(phase, 5.0)


async def test_a_helper_gets_work_once_it_is_sworn_and_what_it_holds_is_not_waited_for() -> None:
    now, few = [0.0], Few(set())
    dispatcher = Dispatcher(lambda: now[0], Patience(tick_s=0.001))
    dispatcher.epoch = 1
    sampling = settings().sampling
    buffer = WorkBuffer(rules=Rules(wanted=1, in_flight=2, sampling=sampling, seed=1), epoch=1, iteration=1, version=3)
    for number, prompt in enumerate(prompts(2), 1):
        blank = Trajectory(trajectory_id=number, group_id=number, segments=(), reward=None)
        buffer.admit(
            Group(group_id=number, epoch=0, prompt=prompt, born=1, state=GroupState.OPEN, trajectories=(blank,)), {}
        )
    phase = asyncio.create_task(dispatcher.run(buffer, Sheet(), few, lambda finished, wanted: None))
    await asyncio.sleep(0)
    assert (await dispatcher.pull(asks("p-0"))).items == ()
    few.helpers.add("p-0")
    (taken,) = (await dispatcher.pull(asks("p-0"))).items
    dispatcher.lose("p-0")  # gone for good: the item is there for the next who asks
    (again,) = (await dispatcher.pull(asks("p-0"))).items
    assert again.group_id == taken.group_id
    (own,) = (await dispatcher.pull(asks("h-0"))).items
    await dispatcher.give(1, [generate(own, "h-0")])
    await dispatcher.give(1, [generate(own, "h-0")])
    buffer.close()
    for seconds in (1.0, 2.0, 4.0):
        await asyncio.sleep(0.005)
        assert not phase.done()
        now[0] += seconds
    await asyncio.wait_for(phase, 5.0)


@pytest.mark.parametrize(
    ("detail", "seconds"), [('{"verify_s": 0.5, "load_s": 1}', 1.5), ("", 0.0), ("[]", 0.0), ("?", 0.0)]
)
def test_loading_seconds_of_a_serve(detail: str, seconds: float) -> None:
    assert loading_seconds(Reply(key="", error="", retryable=False, seconds=9.0, detail=detail)) == seconds


class Port:
    """A half that answers what it is told, in turn; an exception is raised."""

    def __init__(self, *answers: str | TwinpodError) -> None:
        self.answers, self.keys = list(answers), []

    async def execute(self, command: Command) -> Reply:
        self.keys.append(command.key)
        answer = self.answers.pop(0)
        if isinstance(answer, TwinpodError):
            raise answer
        return Reply(key=command.key, error=answer, retryable="EngineFault" in answer, seconds=0.0, detail="")


async def turn(seconds: float) -> None:
    await asyncio.sleep(0)


def halves(port: Port) -> Halves:
    made = Halves(lambda address: port, turn, lambda: 0.0)
    made.epoch = 3
    return made


async def test_a_lost_call_is_repeated_under_its_key() -> None:
    port = Port(Unreachable("lost"), Unreachable("lost"), "")
    await halves(port).order(TRAINER, Order(verb=Verb.TRAIN, iteration=5))
    assert len(set(port.keys)) == 1
    assert port.keys[0].startswith("3/5/train/")


async def test_an_engine_fault_is_tried_again_under_a_new_key_three_times() -> None:
    port = Port(*["EngineFault: oom"] * 3)
    with pytest.raises(EngineFault, match="h-0 inference serve"):
        await halves(port).order(ENGINE, Order(verb=Verb.SERVE, iteration=5))
    assert len(set(port.keys)) == 3


@pytest.mark.parametrize(
    ("answer", "kind"), [("EngineFault: ranks died", EngineFault), ("StaleEpoch: newer", StaleEpoch)]
)
async def test_a_training_half_gets_one_try(answer: str, kind: type[TwinpodError]) -> None:
    port = Port(answer)
    with pytest.raises(kind):
        await halves(port).order(TRAINER, Order(verb=Verb.TRAIN, iteration=5))


async def test_a_half_that_stays_silent_is_given_up() -> None:
    now = [0.0]

    async def pause(seconds: float) -> None:
        now[0] += 20.0

    port = Port(*[Unreachable("silent")] * 9)
    with pytest.raises(Unreachable):
        await Halves(lambda address: port, pause, lambda: now[0]).order(TRAINER, Order(verb=Verb.TRAIN, iteration=1))
    assert len(port.keys) == 3


async def test_the_epoch_is_above_what_etcd_and_the_books_have_seen() -> None:
    registry = Registry(MemoryStore(), KEYS, turn)
    assert [await registry.take_epoch(0, 1), await registry.take_epoch(0, 1), await registry.take_epoch(7, 1)] == [
        1,
        2,
        8,
    ]


async def test_a_version_waits_for_etcd_and_the_run_is_told_both_times() -> None:
    store = MemoryStore()
    told: list[str] = []

    async def back(seconds: float) -> None:
        store.away = False

    registry = Registry(store, KEYS, back)
    registry.away = told.append
    epoch = await registry.take_epoch(0, 1)
    store.away = True
    assert await registry.members() == ()
    await registry.publish_version(VersionNote(version=1, epoch=epoch, iteration=0, digest="d", owners=()))
    assert [bool(line) for line in told] == [False, True, True, False]
    assert await store.get(KEYS.version) is not None


async def test_an_older_master_cannot_publish() -> None:
    registry = Registry(MemoryStore(), KEYS, turn)
    old, _new = await registry.take_epoch(0, 1), await registry.take_epoch(0, 1)
    with pytest.raises(StaleEpoch):
        await registry.publish_version(VersionNote(version=1, epoch=old, iteration=0, digest="d", owners=()))


def test_phase_seconds_add_up_to_the_iteration() -> None:
    now = [0.0]
    timer = PhaseTimer(lambda: now[0])
    for part, seconds in (("switch", 3.0), ("generate", 5.0), ("train", 2.0)):
        with timer.spend(part):
            now[0] += seconds
        now[0] += 0.5  # nobody's
    timer.move("switch", "weights", 1.0)
    found = timer.seconds()
    assert (found.switch, found.weights, found.generate, found.train, found.other, found.total) == (
        2.0,
        1.0,
        5.0,
        2.0,
        1.5,
        11.5,
    )


def test_the_time_left_follows_the_median_of_the_last_iterations() -> None:
    assert math.isnan(eta_s([], 9))
    done = [record(n, version=n) for n in range(1, 5)]
    slow = replace(done[0], seconds=replace(done[0].seconds, train=100.0))
    assert eta_s([slow, *done[1:]], 10) == 12.0


async def test_health_and_metrics_answer_over_http() -> None:
    health = Health("127.0.0.1", 0, lambda: "twinpod_iteration 3\n")
    health.start()
    loop = asyncio.get_running_loop()
    for path, expected in (("healthz", b"ok\n"), ("metrics", b"twinpod_iteration 3\n")):
        url = f"http://127.0.0.1:{health.port}/{path}"
        body = await loop.run_in_executor(None, lambda url=url: urllib.request.urlopen(url, timeout=5).read())
        assert body == expected
    with pytest.raises(EnvironmentFault, match="health port"):
        Health("127.0.0.1", health.port, str)
    health.stop()
