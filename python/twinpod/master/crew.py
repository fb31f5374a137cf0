"""The halves as one crew: who they are, and the orders that all of them get.

A hybrid pod has both halves; its failure fails the run. A pod with an inference half alone helps (RolloutPool): it
may come and go in any phase, and what goes wrong with it is logged and tried again. The trainer's ranks are reached
through the lead, the training half of the first hybrid pod.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from twinpod.errors import Conflict, TwinpodError, Unreachable
from twinpod.master.board import Board, Pause
from twinpod.master.halves import Halves, Order, gather
from twinpod.records import codec
from twinpod.records.life import EngineState, HalfKind, HalfStatus, Reply, Verb
from twinpod.records.weights import WeightVersion

log = logging.getLogger(__name__)

LOOK_S = 0.5  # between two looks for members at the start
RECRUIT_S = 2.0  # between two looks for newcomers in a rollout phase
SERVE_S = 600.0
_BUSY = (EngineState.SERVING, EngineState.STARTING, EngineState.LOADING)


class Crew:
    """Life: as long as the master; `gather` first. `engines`: how many serve the version of this iteration."""

    def __init__(self, board: Board, halves: Halves, pause: Pause, *, replicas: int, gather_s: float = 900.0) -> None:
        self._board, self._halves, self._pause = board, halves, pause
        self._replicas, self._gather_s = replicas, gather_s
        self._lead: HalfStatus | None = None
        self._hybrid: frozenset[str] = frozenset()
        self._last: dict[str, HalfStatus] = {}  # inference halves of hybrid pods, as last seen
        self.engines = 1

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
            members = await self._board.members()
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
        await self._all(Order(verb=Verb.PREPARE, iteration=iteration, deadline_s=SERVE_S))

    def preparing(self, iteration: int) -> asyncio.Task[None]:
        """The same, beside other work."""
        return asyncio.create_task(self.prepare(iteration))

    async def serve(self, weights: WeightVersion, iteration: int) -> float:
        """Engines take the version and serve it.

        Returns the seconds that verifying and loading took, by the slowest.
        """
        order = Order(
            verb=Verb.SERVE,
            iteration=iteration,
            version=weights.version,
            argument=codec.dumps(weights),
            deadline_s=SERVE_S,
        )
        replies = await self._all(order)
        self.engines = max(1, len(replies))
        return max((loading_seconds(reply) for reply in replies), default=0.0)

    async def rest(self, iteration: int) -> None:
        """The rollout phase is over: engines free what the trainer needs."""
        await self._all(Order(verb=Verb.REST, iteration=iteration, deadline_s=120.0))

    async def dismiss(self, iteration: int) -> None:
        """Everybody may go; who is gone already does not matter."""
        members = await self._board.members()
        order = Order(verb=Verb.EXIT, iteration=iteration, deadline_s=20.0)
        await asyncio.gather(*(self._leniently(member, order) for member in members))

    async def versions(self) -> str:
        """What the engines say they serve, in words."""
        members = await self._board.members()
        return ", ".join(f"{one.pod}: {one.version}" for one in members if one.kind is HalfKind.INFERENCE) or "nothing"

    @asynccontextmanager
    async def recruiting(self, weights: WeightVersion, iteration: int) -> AsyncIterator[None]:
        """Within the block, halves that come, or come back, take the version and join."""
        task = asyncio.create_task(self._recruit(weights, iteration))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _recruit(self, weights: WeightVersion, iteration: int) -> None:
        order = Order(
            verb=Verb.SERVE,
            iteration=iteration,
            version=weights.version,
            argument=codec.dumps(weights),
            deadline_s=SERVE_S,
        )
        number = 0
        while True:
            await self._pause(RECRUIT_S)
            idle = [one for one in await self._board.members() if stands_idle(one, weights.version)]
            for member in idle:
                number += 1
                log.info("recruits", extra={"pod": member.pod, "state": member.state, "has": member.version})
                prepare = Order(verb=Verb.PREPARE, iteration=iteration, deadline_s=SERVE_S, mark=f"recruit-{number}")
                if await self._leniently(member, prepare) and await self._leniently(
                    member, replace(order, mark=f"recruit-{number}")
                ):
                    self.engines += member.pod not in self._hybrid

    async def _all(self, order: Order) -> tuple[Reply, ...]:
        """To every inference half. The first error of a hybrid pod is raised; other pods are left behind."""
        members = [one for one in await self._board.members() if one.kind is HalfKind.INFERENCE]
        hybrid = [one for one in members if one.pod in self._hybrid]
        helpers = [one for one in members if one.pod not in self._hybrid]
        known = {one.pod for one in hybrid}
        # A lease that ran out makes a member unknown, it does not end it (design 8.6): call it where it was seen.
        hybrid += [one for pod, one in sorted(self._last.items()) if pod not in known]
        self._last = {one.pod: one for one in hybrid}
        helping = [asyncio.create_task(self._leniently(one, order)) for one in helpers]
        try:
            replies = await gather(*(self._halves.order(one, order) for one in hybrid))
            others = await asyncio.gather(*helping)
        finally:
            for task in helping:
                task.cancel()
        return (*replies, *(reply for reply in others if reply is not None))

    async def _leniently(self, member: HalfStatus, order: Order) -> Reply | None:
        try:
            return await self._halves.order(member, order)
        except (Unreachable, Conflict) as error:
            log.info("a half is left behind", extra={"pod": member.pod, "verb": order.verb.value, "why": str(error)})
        except TwinpodError as error:
            log.warning("a half is left behind", extra={"pod": member.pod, "verb": order.verb.value, "why": str(error)})
        return None


def missing_halves(members: Sequence[HalfStatus], replicas: int) -> str:
    """In words, what is still missing of `replicas` hybrid pods; empty when all is there. Pure."""
    training = {one.pod for one in members if one.kind is HalfKind.TRAINING}
    inference = {one.pod for one in members if one.kind is HalfKind.INFERENCE}
    if len(training) < replicas:
        return f"{replicas - len(training)} training halves"
    if lacking := sorted(training - inference):
        return f"inference half of {', '.join(lacking)}"
    return ""


def stands_idle(member: HalfStatus, version: int) -> bool:
    """An inference half that neither serves this version nor is about to serve one. Pure."""
    if member.kind is not HalfKind.INFERENCE:
        return False
    busy = member.state in {state.value for state in _BUSY}
    return not busy or (member.state == EngineState.SERVING.value and member.version != version)


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
