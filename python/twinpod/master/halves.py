"""Orders to the halves. A call that got lost is repeated under the same key; an order that failed and may be retried
gets a new one.

A training half that fails is not retried here: its ranks' state is gone, and the master resumes from the books
(design 8.4).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from twinpod.errors import TwinpodError, Unreachable
from twinpod.master.registry import Pause
from twinpod.records.life import Command, HalfKind, HalfStatus, Reply, Verb
from twinpod.rpc.errors import raise_for

log = logging.getLogger(__name__)

TRIES = 3  # of an order to an inference half
RETRY_S = 0.5


class HalfPort(Protocol):
    """One half, as gRPC or as a fake."""

    async def execute(self, command: Command) -> Reply:
        """Answers when it is done. Unreachable when the half did not answer in time."""
        ...


Connect = Callable[[str], HalfPort]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a half is to do; the key is made when it is sent."""

    verb: Verb
    iteration: int
    version: int = 0
    argument: str = ""
    deadline_s: float = 600.0
    mark: str = ""  # tells orders of the same verb and iteration apart


class Halves:
    """Life: as long as the master. Ports are kept by address."""

    def __init__(self, connect: Connect, pause: Pause, clock: Callable[[], float], lost_after_s: float = 30.0) -> None:
        self._connect, self._pause, self._clock, self._lost_after_s = connect, pause, clock, lost_after_s
        self._ports: dict[str, HalfPort] = {}
        self.epoch = 0

    async def order(self, member: HalfStatus, order: Order) -> Reply:
        """One order to one half, done when this returns. Raises the error that the half names, or Unreachable."""
        tries = TRIES if member.kind is HalfKind.INFERENCE else 1
        key = "/".join(
            str(part)
            for part in (self.epoch, order.iteration, order.verb.value, order.version, order.mark)
            if part != ""
        )
        where = f"{member.pod} {member.kind.value} {order.verb.value}"
        for number in range(1, tries + 1):
            command = Command(
                key=f"{key}/{number}",
                verb=order.verb,
                epoch=self.epoch,
                iteration=order.iteration,
                version=order.version,
                argument=order.argument,
                deadline_s=order.deadline_s,
            )
            try:
                return raise_for(await self._send(member, command))
            except TwinpodError as error:
                log.warning("order failed", extra={"where": where, "try": number, "why": str(error)})
                if not error.retryable or number == tries:
                    raise type(error)(
                        error.what, where=f"{where}: {error.where}" if error.where else where, mend=error.mend
                    ) from error
                await self._pause(RETRY_S)
        raise AssertionError("unreachable")

    async def all(self, members: Sequence[HalfStatus], order: Order) -> tuple[Reply, ...]:
        """The same order to several halves at once; the first error cancels the wait for the others."""
        return await gather(*(self.order(member, order) for member in members))

    async def _send(self, member: HalfStatus, command: Command) -> Reply:
        """Send until answered: a lost call is repeated under its key, until its deadline or the half is gone."""
        began = self._clock()
        port = self._ports.setdefault(member.address, self._connect(member.address))
        silent_since: float | None = None
        while True:
            try:
                left = command.deadline_s - (self._clock() - began)
                return await port.execute(replace(command, deadline_s=max(left, 1.0)))
            except Unreachable:
                now = self._clock()
                silent_since = now if silent_since is None else silent_since
                if now - silent_since > self._lost_after_s or now - began > command.deadline_s:
                    raise
                await self._pause(RETRY_S)


async def gather(*acts: Awaitable[Reply]) -> tuple[Reply, ...]:
    """All results; the first error cancels the rest and is raised as itself, not in a group."""
    tasks = [asyncio.ensure_future(act) for act in acts]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
