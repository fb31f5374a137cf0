"""What a replica does from the moment it leads until it ends: the wiring of everything that writes.

reflectors ─┐                       ┌─► Actor ──► API server, etcd
Kopf ───────┼─► World ─► queue ─► Reconciler (observe, plan, act, status)
etcd ───────┘    ▲                  │
                 └── own answers ◄──┘
"""

from __future__ import annotations

import asyncio
import gc
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from twinpod.coordination.etcd import EtcdStore
from twinpod.errors import TwinpodError
from twinpod_operator.apply import Actor
from twinpod_operator.certificates import Issuer
from twinpod_operator.etcd_admin import EtcdAdmin, keep_looking, keep_sweeping
from twinpod_operator.handlers import wait_for_kinds, watch
from twinpod_operator.kube import Api
from twinpod_operator.kube_errors import LeaseLost
from twinpod_operator.liveness import Metrics
from twinpod_operator.login import Login
from twinpod_operator.nouns import Key
from twinpod_operator.observe import Observer
from twinpod_operator.plan import plan
from twinpod_operator.queue import KeyQueue
from twinpod_operator.reconcile import Reconciler, Refusals
from twinpod_operator.resync import keep_resyncing, resync
from twinpod_operator.settings import Settings
from twinpod_operator.world import World

log = logging.getLogger(__name__)
PLATFORM_RETRY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a leader is given."""

    settings: Settings
    login: Login
    api: Api  # fenced
    metrics: Metrics


class Led:
    """One time of leading. Life: `run` once, until `stop` is set or something ends it for good."""

    def __init__(self, tools: Tools, certificates: Path) -> None:
        settings = tools.settings
        self._tools, self._certificates = tools, certificates
        self.queue = KeyQueue(tools.metrics.reconcile)
        self.world = World(self._wake)
        self.issuer = Issuer(
            tools.api,
            namespace=settings.namespace,
            endpoints=settings.platform.etcd,
            duration_s=settings.certificate_s,
        )
        self.etcd = EtcdAdmin(EtcdStore(settings.platform.etcd, certificates), access=settings.etcd_access)
        refusals = Refusals()
        self.reconciler = Reconciler(
            api=tools.api,
            world=self.world,
            observer=Observer(self.world, self.etcd, refusals.get),
            actor=Actor(tools.api, self.world, self.issuer, self.etcd),
            refusals=refusals,
            plan=plan,
            platform=settings.platform,
            resync_s=settings.resync_s * 2,  # the resync wakes every key anyway
        )
        self.ready = asyncio.Event()

    def _wake(self, key: Key, *, urgent: bool = False) -> None:
        self.queue.add(key, urgent=urgent)

    async def run(self, stop: asyncio.Event) -> None:
        """Leads. LeaseLost, or whatever a part of it ended with, comes out."""
        tools, settings = self._tools, self._tools.settings
        tools.metrics.gauges |= {
            "twinpod_operator_queue_depth": lambda: float(self.queue.depth),
            "twinpod_operator_queue_working": lambda: float(self.queue.working),
            "twinpod_operator_pods": lambda: float(len(self.world.pods)),
        }
        renew = await self._platform()
        await wait_for_kinds(tools.api)
        reflectors = self.world.reflectors(tools.api)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(reflector.run()) for reflector in reflectors]
            await asyncio.gather(*(reflector.synced.wait() for reflector in reflectors))
            await resync(tools.api, self.world)
            gc.collect()
            gc.freeze()  # what is here now stays; later collections need not look at it again
            log.info("seen: %d resources, %d pods", len(list(self.world)), len(self.world.pods))
            kopf = group.create_task(watch(tools.login, self.world, stop, self.ready))
            tasks += [
                group.create_task(self.queue.run(self.reconciler.work, workers=settings.workers)),
                group.create_task(keep_looking(self.etcd, self.world.telling, self.queue.add, settings.progress_s)),
                group.create_task(keep_sweeping(self.etcd, self._exists, settings.sweep_s)),
                group.create_task(keep_resyncing(tools.api, self.world, self._later, settings.resync_s)),
                group.create_task(self._keep_certificates(renew)),
            ]
            await kopf
            for task in tasks:
                task.cancel()
        await self.etcd.close()

    def _later(self, key: Key, after_s: float) -> None:
        self.queue.add(key, after_s)

    def _exists(self, uid: str) -> bool:
        return self.world.key_of(uid) is not None

    async def _platform(self) -> float:
        """The platform's own Secrets, and our client certificate in its folder; tried until it works."""
        while True:
            try:
                again = await self.issuer.platform()
            except LeaseLost:
                raise
            except TwinpodError as error:
                log.warning("the platform's certificates are not there yet: %s", error)
                await asyncio.sleep(PLATFORM_RETRY_S)
            else:
                self.issuer.own().write(self._certificates)
                return again

    async def _keep_certificates(self, after_s: float) -> None:
        while True:
            await asyncio.sleep(after_s)
            after_s = await self._platform()


async def lead(tools: Tools, stop: asyncio.Event, on_ready: Callable[[], None]) -> None:
    """Leads until `stop`; everything that it wrote to disk is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="twinpod-operator-") as folder:
        led = Led(tools, Path(folder))
        telling = asyncio.create_task(_tell(led.ready, on_ready))
        try:
            await led.run(stop)
        finally:
            telling.cancel()


async def _tell(ready: asyncio.Event, on_ready: Callable[[], None]) -> None:
    await ready.wait()
    on_ready()
