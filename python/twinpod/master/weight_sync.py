"""The weights on their way from the trainer to the engines, apart from the loop: published, made way for, announced."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from twinpod.coordination.keys import VersionNote
from twinpod.errors import ProtocolError
from twinpod.master.copies import Copies, copies_of
from twinpod.master.halves import Order
from twinpod.master.progress import PhaseTimer, Reporter
from twinpod.master.registry import Registry
from twinpod.master.worker_group import WorkerGroup
from twinpod.records import codec
from twinpod.records.life import Verb
from twinpod.records.weights import ShardRef


class WeightSync:
    """Life: as long as the conductor; `epoch` is set once it is known, `close` at the end.

    moves_memory: trainer and engines share accelerators, so one has to let go before the other comes.
    """

    def __init__(self, workers: WorkerGroup, registry: Registry, reporter: Reporter, *, moves_memory: bool) -> None:
        self._workers, self._registry, self._reporter = workers, registry, reporter
        self._moves_memory = moves_memory
        self._current: Copies | None = None
        self._preparing: asyncio.Task[None] | None = None  # engines that come up beside a publication
        self.epoch = 0

    @property
    def current(self) -> Copies:
        """The newest version. ProtocolError before the first one."""
        if self._current is None:
            raise ProtocolError("no version was published yet", where="master")
        return self._current

    async def publish(self, timer: PhaseTimer, iteration: int, version: int) -> None:
        """The trainer writes the version; where memory is not shared, engines start meanwhile."""
        await self._reporter.phase("publish", waiting_for="trainer")
        with timer.spend("weights"):
            if not self._moves_memory:
                self._preparing = self._workers.preparing(iteration)
            reply = await self._workers.train(Order(verb=Verb.PUBLISH, iteration=iteration, version=version))
        shards = codec.loads(_Shards, f'{{"shards":{reply.detail}}}').shards
        self._current = copies_of(version, self.epoch, iteration, shards)

    async def make_way(self, timer: PhaseTimer, iteration: int) -> None:
        """The trainer's memory leaves the accelerator, where it is shared; then engines are up (design 8.3)."""
        await self._reporter.phase("switch", waiting_for="engines")
        with timer.spend("switch"):
            if self._moves_memory:
                await self._workers.train(Order(verb=Verb.OFFLOAD, iteration=iteration))
            await (self._preparing or self._workers.preparing(iteration))
        self._preparing = None

    async def announce(self) -> None:
        """Make the current version the committed one, in etcd."""
        weights = self.current
        note = VersionNote(
            version=weights.version,
            epoch=self.epoch,
            iteration=weights.iteration,
            digest=weights.digest,
            owners=weights.owners,
        )
        await self._registry.publish_version(note)
        self._reporter.versions(self.epoch, weights.version)

    async def close(self) -> None:
        """Wait for nothing more."""
        if self._preparing:
            self._preparing.cancel()
            await asyncio.gather(self._preparing, return_exceptions=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shards:
    shards: tuple[ShardRef, ...]
