"""Engines without a trainer (RolloutPool): they come and go while the job runs, and nobody waits for them.

Theory of operation. While a version is served and generated with, `at_work` looks at the members every few seconds.
One that does not serve this version yet is told to take it, in a task of its own; when it has answered that it serves
the version, and not before, it is given work. A half that is asked again for what it serves answers at once, so a
master that was started anew asks everyone again and believes no status of the time before. What a member holds
that has gone is handed out again. At the end of the phase nothing is awaited: an order under way is
superseded by the next version's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from twinpod.errors import Conflict, TwinpodError, Unreachable
from twinpod.master.copies import Copies
from twinpod.master.halves import Halves, Order
from twinpod.master.registry import Pause, Registry
from twinpod.records import codec
from twinpod.records.life import EngineState, HalfKind, HalfStatus, Reply, Verb

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks for newcomers
SERVE_S = 600.0
_BUSY = (EngineState.SERVING, EngineState.STARTING, EngineState.LOADING)


class ElasticEngines:
    """Life: as long as the master. `serving`: pods that serve the version of this phase and take part in it.

    `hybrid_ready`: set by the owner when the engines of hybrid pods serve; from then on one that stands idle has come
    back and is asked, too. lost: told of each helping pod that is a member no more.
    """

    def __init__(self, registry: Registry, halves: Halves, pause: Pause, lost: Callable[[str], None]) -> None:
        self._registry, self._halves, self._pause, self._lost = registry, halves, pause, lost
        self._seen: frozenset[str] = frozenset()
        self._asked: dict[str, asyncio.Task[None]] = {}
        self._number = 0
        self.serving: set[str] = set()
        self.hybrid_ready = False

    @asynccontextmanager
    async def at_work(self, copies: Copies, iteration: int, hybrid: frozenset[str]) -> AsyncIterator[None]:
        """Within the block, helping halves that are there or come take the version; hybrid ones that come back, too."""
        self.serving, self.hybrid_ready = set(), False
        looking = asyncio.create_task(self._look(copies, iteration, hybrid))
        try:
            yield
        finally:
            tasks = (looking, *self._asked.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._asked = {}

    async def _look(self, copies: Copies, iteration: int, hybrid: frozenset[str]) -> None:
        while True:
            members = [one for one in await self._registry.members() if one.kind is HalfKind.INFERENCE]
            here = frozenset(one.pod for one in members)
            for pod in sorted(self._seen - here):
                log.info("a member has gone", extra={"pod": pod})
                self.serving.discard(pod)
                if pod not in hybrid:
                    self._lost(pod)
            self._seen = here
            self._asked = {pod: task for pod, task in self._asked.items() if not task.done()}
            for member in whom_to_ask(members, copies.version, hybrid, self.serving):
                if member.pod not in self._asked and (self.hybrid_ready or member.pod not in hybrid):
                    self._number += 1
                    peers = [one.address for one in members if one.pod in hybrid or one.pod in self.serving]
                    order = serve_order(member, copies, iteration, f"join-{self._number}", peers)
                    ask = self._join(member, order, hybrid)
                    self._asked[member.pod] = asyncio.create_task(ask)
            await self._pause(LOOK_S)

    async def _join(self, member: HalfStatus, serve: Order, hybrid: frozenset[str]) -> None:
        log.info("joins", extra={"pod": member.pod, "state": member.state, "has": member.version})
        prepare = replace(serve, verb=Verb.PREPARE, argument="")
        if member.pod in hybrid and not await leniently(self._halves, member, prepare):
            return
        if await leniently(self._halves, member, serve) and member.pod not in hybrid:
            self.serving.add(member.pod)


def whom_to_ask(
    members: Sequence[HalfStatus], version: int, hybrid: frozenset[str], serving: Collection[str]
) -> tuple[HalfStatus, ...]:
    """Inference halves that are to be told to take the version: strangers, and whoever stands idle. Pure."""
    return tuple(
        one
        for one in members
        if one.kind is HalfKind.INFERENCE
        and ((one.pod not in hybrid and one.pod not in serving) or stands_idle(one, version))
    )


def stands_idle(member: HalfStatus, version: int) -> bool:
    """An inference half that neither serves this version nor is about to serve one. Pure."""
    if member.kind is not HalfKind.INFERENCE:
        return False
    busy = member.state in {state.value for state in _BUSY}
    return not busy or (member.state == EngineState.SERVING.value and member.version != version)


def serve_order(member: HalfStatus, copies: Copies, iteration: int, mark: str = "", peers: Sequence[str] = ()) -> Order:
    """Take this version and serve it, with what the half needs to find it."""
    return Order(
        verb=Verb.SERVE,
        iteration=iteration,
        version=copies.version,
        argument=codec.dumps(copies.serving(member.pod, peers)),
        deadline_s=SERVE_S,
        mark=mark,
    )


async def leniently(halves: Halves, member: HalfStatus, order: Order) -> Reply | None:
    """An order to a half that may fail: None, and a line in the log."""
    told = {"pod": member.pod, "verb": order.verb.value}
    try:
        return await halves.order(member, order)
    except (Unreachable, Conflict) as error:
        log.info("a half is left behind", extra={**told, "why": str(error)})
    except TwinpodError as error:
        log.warning("a half is left behind", extra={**told, "why": str(error)})
    return None
