"""The halves as one workers: who they are, and the orders that all of them get.

A hybrid pod has both halves; its failure fails the run. A pod with an inference half alone helps (RolloutPool): it may
come and go in any phase, what goes wrong with it is logged and tried again, and nobody waits for it (`elastic`). The
trainer's ranks are reached through the lead, the training half of the first hybrid pod; the other training halves
follow.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from twinpod.errors import Unreachable
from twinpod.master.copies import Copies
from twinpod.master.elastic import SERVE_S, ElasticEngines, leniently, serve_order
from twinpod.master.halves import Halves, Order, gather
from twinpod.master.registry import Pause, Registry
from twinpod.records.life import HalfKind, HalfStatus, Reply, Verb

LOOK_S = 0.5  # between two looks for members at the start
FAREWELL_S = 2.0  # for helping pods to hear that the run is over


class WorkerGroup:
    """Life: as long as the master; `gather` first. It is the dispatcher's roster too: who takes part in a phase.

    lost: told of each helping pod that is a member no more.
    """

    def __init__(
        self,
        registry: Registry,
        halves: Halves,
        pause: Pause,
        *,
        replicas: int,
        lost: Callable[[str], None] = lambda pod: None,
        gather_s: float = 900.0,
    ) -> None:
        self._registry, self._halves, self._pause = registry, halves, pause
        self._replicas, self._gather_s = replicas, gather_s
        self._lead: HalfStatus | None = None
        self._hybrid: frozenset[str] = frozenset()
        self._last: dict[str, HalfStatus] = {}  # inference halves of hybrid pods, as last seen
        self._elastic = ElasticEngines(registry, halves, pause, lost)

    @property
    def engines(self) -> int:
        """How many engines share the work of this phase."""
        return max(1, len(self._hybrid)) + len(self._elastic.serving)

    def takes_part(self, pod: str) -> bool:
        """Whether a pod's worker may be given work: its half told this master that it serves the phase's version."""
        return pod in self._hybrid or pod in self._elastic.serving

    def is_awaited(self, pod: str) -> bool:
        """Whether the end of a phase waits for what the pod was cut in."""
        return pod in self._hybrid

    @property
    def epoch(self) -> int:
        """Job epoch of every order."""
        return self._halves.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._halves.epoch = epoch

    async def gather(self, tell: Callable[[str], None]) -> None:
        """Wait until every hybrid pod has both halves, then bring all engines to rest.

        `tell`: who is missing, in words.
        """
        for _ in range(int(self._gather_s / LOOK_S)):
            members = await self._registry.members()
            missing = missing_halves(members, self._replicas)
            tell(missing)
            if not missing:
                break
            await self._pause(LOOK_S)
        else:
            raise Unreachable(
                f"{missing} did not report within {self._gather_s:.0f} s",
                where="pods",
                mend="see the pods' logs and events",
            )
        training = sorted((one for one in members if one.kind is HalfKind.TRAINING), key=_natural)
        self._lead = training[0]
        self._hybrid = frozenset(one.pod for one in training)
        await self.rest(0)

    async def train(self, order: Order) -> Reply:
        """An order to the trainer's ranks."""
        assert self._lead is not None, "gather first"
        return await self._halves.order(self._lead, order)

    async def prepare(self, iteration: int) -> None:
        """Engines come up, with whatever weights."""
        order = Order(verb=Verb.PREPARE, iteration=iteration, deadline_s=SERVE_S)
        await self._all(lambda member: order)

    def preparing(self, iteration: int) -> asyncio.Task[None]:
        """The same, beside other work."""
        return asyncio.create_task(self.prepare(iteration))

    async def serve(self, copies: Copies, iteration: int) -> float:
        """Engines of hybrid pods take the version, each its own pod's copy, and serve it.

        Returns the seconds that verifying and loading took, by the slowest.
        """
        replies = await self._all(lambda member: serve_order(member, copies, iteration))
        self._elastic.hybrid_ready = True
        return max((loading_seconds(reply) for reply in replies), default=0.0)

    def helped(self, copies: Copies, iteration: int) -> AbstractAsyncContextManager[None]:
        """Within the block, helping pods take the version and join, and engines that come back take it again."""
        return self._elastic.at_work(copies, iteration, self._hybrid)

    async def rest(self, iteration: int, mark: str = "") -> None:
        """The rollout phase is over: engines free what the trainer needs. `mark`: see Order."""
        order = Order(verb=Verb.REST, iteration=iteration, deadline_s=120.0, mark=mark)
        await self._all(lambda member: order)

    async def dismiss(self, iteration: int) -> None:
        """Everybody may go; who is gone already does not matter, and helping pods need not answer."""
        order = Order(verb=Verb.EXIT, iteration=iteration, deadline_s=20.0)
        awaited: list[asyncio.Task[Reply | None]] = []
        others: list[asyncio.Task[Reply | None]] = []
        for member in await self._registry.members():
            task = asyncio.create_task(leniently(self._halves, member, order))
            (awaited if member.pod in self._hybrid else others).append(task)
        await asyncio.gather(*awaited)
        if others:
            await asyncio.wait(others, timeout=FAREWELL_S)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def versions(self) -> str:
        """What the engines say they serve, in words."""
        members = await self._registry.members()
        return ", ".join(f"{one.pod}: {one.version}" for one in members if one.kind is HalfKind.INFERENCE) or "nothing"

    async def _all(self, order_for: Callable[[HalfStatus], Order]) -> tuple[Reply, ...]:
        """To the inference half of every hybrid pod; the first error is raised."""
        members = [one for one in await self._registry.members() if one.kind is HalfKind.INFERENCE]
        hybrid = [one for one in members if one.pod in self._hybrid]
        known = {one.pod for one in hybrid}
        # A lease that ran out makes a member unknown, it does not end it (design 8.6): call it where it was seen.
        hybrid += [one for pod, one in sorted(self._last.items()) if pod not in known]
        self._last = {one.pod: one for one in hybrid}
        return await gather(*(self._halves.order(one, order_for(one)) for one in hybrid))


def missing_halves(members: Sequence[HalfStatus], replicas: int) -> str:
    """In words, what is still missing of `replicas` hybrid pods; empty when all is there. Pure."""
    training = {one.pod for one in members if one.kind is HalfKind.TRAINING}
    inference = {one.pod for one in members if one.kind is HalfKind.INFERENCE}
    if len(training) < replicas:
        return f"{replicas - len(training)} training halves"
    if lacking := sorted(training - inference):
        return f"inference half of {', '.join(lacking)}"
    return ""


def loading_seconds(reply: Reply) -> float:
    """`verify_s` and `load_s` of a SERVE's detail; 0 when it was a no-op."""
    try:
        detail = json.loads(reply.detail or "{}")
        return float(detail.get("verify_s", 0.0)) + float(detail.get("load_s", 0.0))
    except (ValueError, AttributeError, TypeError):
        return 0.0


def _natural(member: HalfStatus) -> tuple[int, str]:
    """hybrid-2 before hybrid-10."""
    return len(member.pod), member.pod
