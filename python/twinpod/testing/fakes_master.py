"""A world for the master: halves that keep their word in memory, workers that generate at once, and a way to pull the
plug anywhere.

    world = World(folder)                      # survives masters, as etcd and the volumes do
    await world.master(iterations=3).run()     # a master from start to end
    world.plug = Plug(after=17); ...           # the 17th event (order to a half, result handed in) kills the master
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twinpod.coordination.keys import Keys
from twinpod.coordination.memory import MemoryStore
from twinpod.coordination.store import Store
from twinpod.errors import TwinpodError, Unreachable
from twinpod.master.archiving import Archive
from twinpod.master.batch_server import BatchServer
from twinpod.master.books import FILE, Books, Identity
from twinpod.master.conductor import Conductor, Parts
from twinpod.master.dispatcher import Dispatcher
from twinpod.master.halves import Halves
from twinpod.master.judges import InProcess, Scorer
from twinpod.master.progress import Reporter
from twinpod.master.prompts import PromptSource
from twinpod.master.registry import Registry
from twinpod.master.rewards import Judge
from twinpod.master.sinks import AsyncBooks
from twinpod.master.worker_group import WorkerGroup
from twinpod.records import codec
from twinpod.records.life import Command, EngineState, HalfKind, HalfStatus, Reply, Verb
from twinpod.records.rollout import PullRequest, WorkItem
from twinpod.records.training import DataLayout, RankBatch
from twinpod.records.weights import ServeOrder, ShardRef
from twinpod.reward.port import RewardPort
from twinpod.rpc.batches import BatchReader
from twinpod.sampling.uniform import Uniform
from twinpod.testing.small_run import LengthReward, answer, generate, prompts, settings, shard, stats


class PowerCut(Exception):  # not an error of Twinpod: the fake's kill -9
    """The master is no more."""


@dataclass(slots=True)
class Plug:
    """Counts events; `after` of them have happened when the next one kills, `tell_after` when `tell` is called."""

    after: int = -1
    seen: int = 0
    tell: Callable[[], None] | None = None
    tell_after: int = -1

    def event(self) -> None:
        """One more event."""
        self.seen += 1
        if 0 <= self.after < self.seen:
            raise PowerCut
        if self.tell and self.seen == self.tell_after:
            self.tell()


@dataclass(slots=True)
class TrainerState:
    """The fake trainer's weights: what they were trained on, in order."""

    version: int = 0
    trained: list[str] = field(default_factory=list)  # "iteration: response tokens" of each batch


class World:
    """Everything beside the master. Life: one test; masters come and go in it."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.folder = folder
        self.settings = settings(**changes)
        self.store: Store = MemoryStore()
        self.reporter: Reporter | None = None  # of the newest master
        self.keys = Keys(namespace="default", job_uid="u")
        self.plug = Plug()
        self.trainer = TrainerState()
        self.batches: BatchServer | None = None
        self.gap = 0.0
        self.reward: RewardPort = LengthReward()
        self.scorer: Scorer | None = None  # in place of the reward
        self.served: dict[str, int] = {}  # by pod
        self.helpers: tuple[str, ...] = ()  # pods without a trainer
        self.orders: list[Command] = []
        self.told: list[str] = []  # the pod of each order
        self.apart_from = 0  # version from which on the pods' weights differ
        self.changed: tuple[int, str] = (0, "")  # version, tensor: its weights are others now, in one of this name
        self.leaves_after: tuple[int, str] = (-1, "")  # events, helping pod: then it is gone, with what it holds
        self.silent: tuple[str, ...] = ()  # pods whose inference half does not answer
        self.fail: dict[Verb, TwinpodError] = {}  # the next order of that verb fails so
        self.on_order: Callable[[Command], Awaitable[None]] | None = None  # whatever a test does then
        self.away_during: Verb | None = None  # etcd goes away with such an order and is back with the next one
        self.told_to_leave = False  # the conductor took it
        self.refuses: Callable[[WorkItem], bool] = lambda item: False  # the engines will not do such an item
        self.prompts, self.held_out = prompts(12), prompts(3, first=12)

    @property
    def hybrid(self) -> tuple[str, ...]:
        """Pods with both halves."""
        return tuple(f"j-hybrid-{index}" for index in range(self.settings.hybrid_replicas))

    async def join(self) -> None:
        """The halves report."""
        for pod in self.hybrid:
            for kind in HalfKind:
                await self.tell(pod, kind)
        for pod in self.helpers:
            await self.tell(pod, HalfKind.INFERENCE)

    async def tell(self, pod: str, kind: HalfKind) -> None:
        """A half's word to etcd, lost while that is away."""
        serves = self.served.get(pod, 0) if kind is HalfKind.INFERENCE else 0
        status = HalfStatus(
            pod=pod,
            kind=kind,
            address=f"{kind.value}:{pod}",
            state=(EngineState.SERVING if serves else EngineState.NONE).value,
            version=serves,
            epoch=0,
            pod_attempt=1,
            attempt=0,
            message="",
        )
        with contextlib.suppress(Unreachable):
            await self.store.put(self.keys.member(pod, kind), codec.dumps(status))

    async def leave(self, pod: str) -> None:
        """A helping pod goes."""
        self.helpers = tuple(one for one in self.helpers if one != pod)
        self.served.pop(pod, None)
        await self.store.delete(self.keys.member(pod, HalfKind.INFERENCE))

    def connect(self, address: str) -> FakeHalf:
        """A port to one of the halves."""
        kind, _, pod = address.partition(":")
        return FakeHalf(self, HalfKind(kind), pod)

    async def run(self, *, leave_after: int = -1) -> bool:
        """One master, with a worker a pod, until it ends; a PowerCut closes its files and nothing else.

        `leave_after`: so many events, then the conductor is told to leave.
        """
        await self.join()
        books = Books.open(self.folder / "state", Identity(job="j", fields={"spec.seed": "7"}))
        # closed last: a thread may still be at work with them
        with (
            closing(books),
            ThreadPoolExecutor(1) as books_thread,
            ThreadPoolExecutor(1) as judge_thread,
            ThreadPoolExecutor(1) as batch_thread,
        ):
            async_books = AsyncBooks(books, books_thread)
            registry = Registry(self.store, self.keys, _turn)
            dispatcher = Dispatcher(_still)
            self.batches = batches = BatchServer(self.folder / "state" / FILE, batch_thread)
            halves = Halves(self.connect, _turn, _still)
            workers = WorkerGroup(registry, halves, _turn, replicas=self.settings.hybrid_replicas, lost=dispatcher.lose)
            self.reporter = reporter = Reporter(registry, async_books, _still, self.settings.iterations)
            parts = Parts(
                settings=self.settings,
                async_books=async_books,
                registry=registry,
                workers=workers,
                dispatcher=dispatcher,
                batches=batches,
                archive=Archive(async_books, self.folder / "snapshots", self.settings.keep_iterations),
                source=PromptSource(self.prompts, self.held_out, Uniform(size=len(self.prompts), seed=7)),
                judge=Judge(
                    self.scorer or InProcess(self.reward, judge_thread),
                    lambda ids: " ".join(map(str, ids)),
                    0.0,
                    judge_thread,
                ),
                reporter=reporter,
                snapshots=self.folder / "snapshots",
                committed=lambda record: None,
                clock=_still,
                wall=_still,
            )
            conductor = Conductor(parts)

            def leave() -> None:
                self.told_to_leave = conductor.leave()

            self.plug.tell, self.plug.tell_after = leave, leave_after
            master = asyncio.create_task(conductor.run())
            crowd = [asyncio.create_task(self._work(pod, dispatcher)) for pod in (*self.hybrid, *self.helpers)]
            return await _until_over(master, crowd)

    async def _work(self, name: str, dispatcher: Dispatcher) -> None:
        """A worker that generates at once, and gives back half of an item first when the phase is cut."""
        held: list[WorkItem] = []
        while True:
            pulled = await dispatcher.pull(
                PullRequest(
                    worker=name,
                    epoch=0,
                    version=self.served.get(name, 0),
                    capacity=4,
                    wait_s=0.01,
                    tokens_generated=0,
                    holding=tuple(item.item_id for item in held),
                )
            )
            held += pulled.items
            if not held:
                continue
            self.plug.event()
            if name not in (*self.hybrid, *self.helpers):
                return  # it went with its pod
            item = held[0]
            result = generate(item, name, cut_after=1 if pulled.cut else 1_000_000)
            if self.refuses(item):
                result = replace(result, segments=(), failed="refused with status 400")
            await dispatcher.give(pulled.epoch, [result])
            held.remove(item)

    async def batch(self, command: Command) -> RankBatch:
        """What the one rank of the trainer fetches."""
        assert self.batches is not None
        layout, reader = DataLayout(ranks=1, micro_batch_tokens=64, attention_tokens=100), BatchReader()
        async for part in self.batches.parts(command.epoch, command.iteration, 0, layout):
            reader.take(part.SerializeToString())
        return reader.batch()


class FakeHalf:
    """HalfPort: does at once what is asked, in the world's memory."""

    def __init__(self, world: World, kind: HalfKind, pod: str) -> None:
        self._world, self._kind, self._pod = world, kind, pod

    async def execute(self, command: Command) -> Reply:
        """See HalfPort."""
        world = self._world
        world.plug.event()
        if 0 <= world.leaves_after[0] < world.plug.seen and world.leaves_after[1] in world.helpers:
            await world.leave(world.leaves_after[1])
        if self._pod in world.silent:
            await asyncio.Event().wait()
        if self._pod not in (*world.hybrid, *world.helpers):
            raise Unreachable("no such pod", where=self._pod)
        world.orders.append(command)
        world.told.append(self._pod)
        if isinstance(world.store, MemoryStore):
            world.store.away = command.verb is world.away_during
        if world.on_order:
            await world.on_order(command)
        error = world.fail.pop(command.verb, None)
        batch = await world.batch(command) if command.verb is Verb.TRAIN and not error else None
        detail = "" if error else self._do(command, batch)
        if self._pod in (*world.hybrid, *world.helpers):
            await world.tell(self._pod, self._kind)
        world.plug.event()
        line = f"{type(error).__name__}: {error}" if error else ""
        return Reply(key=command.key, error=line, retryable=bool(error and error.retryable), seconds=0.0, detail=detail)

    def _do(self, command: Command, batch: RankBatch | None) -> str:
        world, trainer = self._world, self._world.trainer
        match command.verb:
            case Verb.ONLOAD if command.argument:
                asked = json.loads(command.argument)
                file = Path(asked["snapshot"]) / "state.json"
                trained = json.loads(file.read_text()) if asked["snapshot"] else []
                world.trainer = TrainerState(version=asked["version"], trained=trained)
            case Verb.TRAIN:
                assert batch is not None
                assert batch.version == trainer.version, "the batch was made for other weights"
                trainer.trained += [f"{batch.iteration}: {answer(sample)}" for sample in batch.samples]
                return codec.dumps(stats(command.iteration, world.gap, batch))
            case Verb.PUBLISH:
                trainer.version = command.version
                return json.dumps([codec.plain(self._shard(command.version, pod)) for pod in world.hybrid])
            case Verb.SNAPSHOT | Verb.EXPORT:
                folder = Path(command.argument)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "state.json").write_text(json.dumps(trainer.trained))
            case Verb.SERVE:
                serving = codec.loads(ServeOrder, command.argument)
                assert serving.weights.version == command.version == trainer.version
                owner = serving.weights.shards[0].owner
                assert self._pod in world.helpers or owner == f"{self._pod}/rank-0", "not this pod's copy"
                world.served[self._pod] = command.version
                return '{"start_s": 0.0, "verify_s": 0.0, "load_s": 0.0}'
            case Verb.REST:
                world.served[self._pod] = 0
            case _:
                pass
        return ""

    def _shard(self, version: int, pod: str) -> ShardRef:
        apart = 0 < self._world.apart_from <= version and pod != "j-hybrid-0"
        made = shard(version, pod)
        changed, tensor = self._world.changed
        if changed == version:
            made = replace(made, layout=f"xxh3:{tensor:0>32}", digest="xxh3:" + "e" * 16)
        return replace(made, digest="xxh3:" + "f" * 16) if apart else made


async def _until_over(master: asyncio.Task[bool], crowd: list[asyncio.Task[None]]) -> bool:
    """The master's answer; a PowerCut that met a worker ends the master too."""
    try:
        while not master.done():
            everyone: list[asyncio.Task[Any]] = [master, *crowd]
            await asyncio.wait(everyone, return_when=asyncio.FIRST_COMPLETED)
            for task in [one for one in crowd if one.done()]:
                crowd.remove(task)
                if task.exception():
                    master.cancel()
                    await asyncio.gather(master, return_exceptions=True)
                    task.result()  # the PowerCut
        return await master
    finally:
        master.cancel()
        for task in crowd:
            task.cancel()
        await asyncio.gather(master, *crowd, return_exceptions=True)


async def _turn(seconds: float) -> None:
    """A pause that costs next to no time: long enough for the books' thread to get on."""
    await asyncio.sleep(0.002)


def _still() -> float:
    """A clock that stands."""
    return 0.0
