"""Pools of a local run: pods beside the job's own, started and ended one by one while the job goes on.

As on Kubernetes a pod of a pool is kept by itself: one that fails is started again after a pause, and neither that nor
a change of their number touches any other pod. A pod that is not wanted any more gets SIGTERM, gives back what it has
generated, and goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from twinpod.errors import EXIT_INPUT, InputError
from twinpod.local.plan import Pod
from twinpod.local.pods import BACKOFF_S, Place, PodRun

LONG_LIFE_S = 60.0  # a pod that lived so long begins with the first pause again


class Pool:
    """The pods of one RolloutPool. Life: `run` until cancelled; `scale` at any time. `wanted`: how many are to run."""

    def __init__(
        self, name: str, pods: Sequence[Pod], places: Sequence[Place], wanted: int, note: Callable[[str], None]
    ) -> None:
        self.name, self.wanted = name, 0
        self._pods, self._places, self._note = tuple(pods), tuple(places), note
        self._running: dict[int, asyncio.Task[None]] = {}
        self._leaving: set[int] = set()  # told to end, once: a second word would cut their grace short
        self._changed = asyncio.Event()
        self.scale(wanted)

    @property
    def most(self) -> int:
        """How many pods there are addresses for."""
        return len(self._pods)

    def added(self, wanted: int) -> tuple[Pod, ...]:
        """The pods that would be started in addition."""
        return self._pods[self.wanted : wanted]

    def scale(self, wanted: int) -> None:
        """So many pods from now on; InputError for more than this machine has addresses for."""
        if not 0 <= wanted <= self.most:
            raise InputError(
                f"{wanted} pods are asked for; local mode runs 0 to {self.most} of a pool", where=self.name
            )
        self.wanted = wanted
        self._changed.set()

    async def run(self) -> None:
        """Keeps as many pods as are wanted; ends them all when it is cancelled."""
        try:
            while True:
                self._changed.clear()
                self._running = {index: task for index, task in self._running.items() if not task.done()}
                self._leaving &= self._running.keys()
                for index in range(self.most):
                    if index < self.wanted and index not in self._running:
                        self._start(index)
                    elif index >= self.wanted:
                        self._end(index)
                await self._changed.wait()
        finally:
            for index in range(self.most):
                self._end(index)
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _start(self, index: int) -> None:
        task = asyncio.create_task(self._keep(index))
        task.add_done_callback(lambda _: self._changed.set())
        self._running[index] = task

    def _end(self, index: int) -> None:
        if index in self._running and index not in self._leaving:
            self._leaving.add(index)
            self._running[index].cancel()

    async def _keep(self, index: int) -> None:
        """One pod, again and again; ends for good only when it is cancelled or its input is wrong."""
        pod, place = self._pods[index], self._places[index]
        loop = asyncio.get_running_loop()
        failures = attempt = 0
        try:
            while True:
                began = loop.time()
                outcome = await PodRun(pod, place, attempt).run()
                attempt += 1
                if outcome.code == EXIT_INPUT:
                    self._note(f"{outcome.reason}; the pod is not started again")
                    await asyncio.Event().wait()
                failures = 1 if loop.time() - began > LONG_LIFE_S else failures + 1
                if outcome.code:
                    self._note(f"{outcome.reason}; starting it again")
                await asyncio.sleep(BACKOFF_S[min(failures - 1, len(BACKOFF_S) - 1)])
        finally:
            place.volumes.empty(pod)
