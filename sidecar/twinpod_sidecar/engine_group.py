"""The engines of one start: as many as the pod's data parallelism says, each on accelerators of its own, handled as
one.

They serve the same weights and are started, loaded and killed together; the rollout worker shares its sequences out
among them. (SGLang's own `dp_size` puts them behind one server, but refuses to load weights there:
`managers/tokenizer_control_mixin.py`, `update_weights_from_tensor`.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from twinpod.inference.sglang_engine import EngineSpec
from twinpod_sidecar.engine_port import Engine
from twinpod_sidecar.settings import InferenceSettings
from twinpod_sidecar.standby import Standby, why_spawn

T = TypeVar("T")


def engine_specs(base: EngineSpec, ports: tuple[int, ...], api_key: str, *, seed: int, run: int) -> list[EngineSpec]:
    """What each engine of a start is started with: a port, accelerators and a seed of its own. Pure.

    `maxRunning` and the seed are the pod's: engines share the sequences out, and no two draw the same numbers, in
    this start or another.
    """
    share = -(-base.max_running // len(ports))
    return [
        replace(
            base,
            port=port,
            api_key=api_key,
            max_running=share,
            first_accelerator=index * base.tensor_parallel,
            seed=((seed * 1_000_003 + run) * 1_009 + index) % 2**31,
        )
        for index, port in enumerate(ports)
    ]


@dataclass(slots=True)
class EngineGroup:
    """The engines of one run: their clients, their pids as they become known, the tasks that start and use them."""

    run: int
    engines: tuple[Engine, ...]
    urls: tuple[str, ...]
    api_key: str
    oom_before: int
    pids: list[int] = field(default_factory=list)
    starting: asyncio.Task[None] | None = None
    task: asyncio.Task[None] | None = None

    def start(self, standby: Standby, arguments: list[dict[str, Any]], settings: InferenceSettings) -> None:
        """Have the standby start them one after the other. Whoever ends them waits for that (`starting`)."""
        spawn = bool(why_spawn(standby.word, sleep=settings.engine.sleep))

        async def start_each() -> None:
            for one in arguments:
                self.pids.append(await standby.engine(one, settings.engine_log, settings.engine_env, spawn=spawn))

        self.starting = asyncio.get_running_loop().create_task(start_each())
        self.starting.add_done_callback(lambda task: task.cancelled() or task.exception())  # told below, or moot

    async def wait_healthy(self, deadline_s: float) -> None:
        """Return when all are started and answer."""
        if self.starting is not None:
            await asyncio.shield(self.starting)
        await self._each(lambda engine: engine.wait_healthy(deadline_s))

    async def load(self, payload: str, version: int) -> float:
        """Load the weights on all and observe the version of each; returns the seconds of the slowest."""
        return max(await self._each(lambda engine: engine.load(payload, version)))

    async def abort_all(self) -> None:
        """Cut all generations."""
        await self._each(lambda engine: engine.abort_all())

    async def release(self) -> None:
        """Give their memory back. A second release kills SGLang, so nothing is tried again."""
        await self._each(lambda engine: engine.release())

    async def resume(self) -> None:
        """Undo `release`."""
        await self._each(lambda engine: engine.resume())

    async def close(self) -> None:
        """End what works with them, and forget the connections."""
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()
        for engine in self.engines:
            await engine.close()

    async def _each(self, act: Callable[[Engine], Coroutine[Any, Any, T]]) -> list[T]:
        """The same with every engine at once; the first error ends the others' and is raised."""
        tasks = [asyncio.ensure_future(act(engine)) for engine in self.engines]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            if error := task.exception():
                raise error
        return [task.result() for task in tasks]
