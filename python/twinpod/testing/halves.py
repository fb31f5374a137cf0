"""An inference half and a training half with real child processes but without SGLang and Megatron, ready to be
ordered about.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from twinpod.api.environment import Environment
from twinpod.checkpoint.fetch import Stager
from twinpod.checkpoint.shard_offers import ShardOffers
from twinpod.inference.sglang_engine import EngineSpec, SGLangEngine
from twinpod.records import codec
from twinpod.records.life import Command, LifeCycle, Reply, Verb
from twinpod.records.weights import ShardSource, WeightVersion
from twinpod.testing.carriers import FakeCarrier
from twinpod.testing.weights import order_of
from twinpod_sidecar.children import Children, ChildSpec, children_of
from twinpod_sidecar.devices import GIB, DeviceMemory, Devices, HandOver
from twinpod_sidecar.inference import InferenceHalf
from twinpod_sidecar.settings import HalfSettings, InferenceSettings, TrainingSettings
from twinpod_sidecar.training import TrainingHalf

FAKE_ENGINE, FAKE_STANDBY, FAKE_RANKS = (f"twinpod.testing.fake_{name}" for name in ("engine", "standby", "ranks"))


class FakeKind:
    """Fake engines, each start with the next of `behaviours` (see `fake_engine`), then plain ones."""

    def __init__(self) -> None:
        self.behaviours: list[dict[str, Any]] = []

    def arguments(self, spec: EngineSpec) -> dict[str, Any]:
        """See EngineKind."""
        behaviour = self.behaviours.pop(0) if self.behaviours else {}
        return {"port": spec.port, "api_key": spec.api_key, "tp_size": spec.tensor_parallel, **behaviour}

    def connect(self, url: str, api_key: str, tensor_parallel: int) -> SGLangEngine:
        """See EngineKind."""
        return SGLangEngine(url, api_key, tensor_parallel=tensor_parallel)


class FakeDevices:
    """Devices of 80 GiB with this much free: the next number at each look, the last one for ever."""

    def __init__(self, *free_gib: float) -> None:
        self._free = list(free_gib) or [80.0]
        self.looks = 0

    def look(self) -> list[DeviceMemory]:
        """See Devices."""
        self.looks += 1
        free = self._free.pop(0) if len(self._free) > 1 else self._free[0]
        return [DeviceMemory(name="GPU-1", total=80 * GIB, free=int(free * GIB))]


class News:
    """Tells who waits that a status has changed."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def tell(self) -> None:
        """It has."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Return when the condition is true, looked at after every change, and often, as it may be about processes."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 0.02)


def order(verb: Verb, number: int = 0, *, epoch: int = 1, argument: str = "", deadline_s: float = 60.0) -> Command:
    """A command; its key is made of the rest."""
    key = f"{epoch}/1/{verb.value}/{number}"
    return Command(key=key, verb=verb, epoch=epoch, iteration=1, version=0, argument=argument, deadline_s=deadline_s)


def environment_in(folder: Path) -> Environment:
    """All folders below one."""
    for name in ("tls", "run", "shm"):
        (folder / name).mkdir(exist_ok=True)
    return Environment(
        job_name="job",
        namespace="test",
        job_uid="uid",
        pod="job-hybrid-0",
        attempt=1,
        address="localhost",
        master="localhost:1",
        etcd=("localhost:1",),
        tls=folder / "tls",
        run=folder / "run",
        shm=folder / "shm",
    )


def half_settings(folder: Path) -> HalfSettings:
    """Ports of nobody; a short grace."""
    return HalfSettings(environment=environment_in(folder), port=0, health_port=0, grace_s=4.0)


def module(
    name: str,
    folder: Path,
    *arguments: str,
    variables: Mapping[str, str] = MappingProxyType({}),
    pipes: bool = False,
) -> ChildSpec:
    """A child that runs a module."""
    env = {**os.environ, **variables}
    log = folder / "run" / f"{name}.log"
    return ChildSpec(name=name, argv=(sys.executable, "-m", name, *arguments), env=env, log=log, pipes=pipes)


class InferenceBench:
    """A running inference half. `async with`; on leaving it has ended and nothing of it is left."""

    def __init__(
        self,
        folder: Path,
        life: LifeCycle = LifeCycle.RESTART,
        worker: tuple[str, ...] = ("sleep", "1000"),
        *,
        engines: int = 1,
        devices: Devices | None = None,
        ready: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        self.folder, self.kind, self.news = folder, FakeKind(), News()
        self.worker = ChildSpec(name="worker", argv=worker, env=dict(os.environ), log=folder / "worker.log")
        self.settings = InferenceSettings(
            half=half_settings(folder),
            life=life,
            standby=module(FAKE_STANDBY, folder, json.dumps(dict(ready)), pipes=True),
            worker=self.worker,
            engine=EngineSpec(
                model_path="", port=0, api_key="", kv_tokens=1, context_length=1, accelerators=devices is not None
            ),
            engine_file=folder / "run" / "engine.json",
            engine_log=folder / "run" / "engine.log",
            engine_env={},
            engines=engines,
            hand_over=HandOver(residue=6 * GIB, deadline_s=0.3),
            start_timeout_s=20.0,
        )
        self.carrier = FakeCarrier()
        self.offers = ShardOffers()
        stager = Stager(folder / "shm", "localhost:7402", self.carrier, self.offers)
        self.devices = devices or FakeDevices()
        self.half = InferenceHalf(self.settings, self.kind, Children(), stager, self.devices, self.news.tell)

    async def __aenter__(self) -> InferenceBench:
        self._task = asyncio.create_task(self.half.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.half.terminate()
        await self._task

    @property
    def state(self) -> str:
        """Of the engine."""
        return self.half.status().state

    async def do(self, command: Command) -> Reply:
        """Order and wait."""
        return await self.half.execute(command)

    async def serve(
        self, version: WeightVersion, number: int = 0, sources: tuple[ShardSource, ...] = (), **more: Any
    ) -> Reply:
        """Order SERVE of a version and wait."""
        argument = codec.dumps(order_of(version, sources))
        return await self.do(order(Verb.SERVE, number, argument=argument, **more))


class TrainingBench:
    """A running training half; its ranks reach it by `link`."""

    def __init__(self, folder: Path, link: str, attempt: int = 1) -> None:
        self.news = News()
        variables = {"TWINPOD_LINK": link, "TWINPOD_ATTEMPT": str(attempt), "TWINPOD_TLS": str(folder / "tls")}
        variables["TWINPOD_RUN"] = str(half_settings(folder).environment.run)
        ranks = module(FAKE_RANKS, folder, variables=variables)
        self.settings = TrainingSettings(half=half_settings(folder), ranks=ranks)
        self.offers = ShardOffers()
        self.half = TrainingHalf(self.settings, Children(), self.offers, self.news.tell)


def processes(word: str) -> list[int]:
    """Living descendants of this process whose command line has the word."""
    found, look = [], [os.getpid()]
    while look:
        for pid in children_of(look.pop()):
            look.append(pid)
            with suppress(OSError):
                if word in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(pid)
    return found


def kill_now(word: str) -> None:
    """SIGKILL to exactly one such process."""
    (pid,) = processes(word)
    os.kill(pid, signal.SIGKILL)
