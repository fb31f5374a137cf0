"""The training half acts here: the ranks under torchrun, and the link to rank 0, as `relay` decides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twinpod.checkpoint.layouts import Layouts
from twinpod.checkpoint.plan import is_here
from twinpod.checkpoint.shard_offers import ShardOffers
from twinpod.errors import IntegrityError, ProtocolError, StaleEpoch
from twinpod.records import codec
from twinpod.records.life import Command, HalfKind, HalfStatus, Reply, Verb
from twinpod.records.weights import ShardRef
from twinpod.rpc import convert
from twinpod.rpc.v1 import half_pb2, half_pb2_grpc
from twinpod_sidecar import relay
from twinpod_sidecar.children import Child, Children
from twinpod_sidecar.service import CommandDispatcher
from twinpod_sidecar.settings import TrainingSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shards:
    """The detail of a PUBLISH reply, which is the list alone."""

    shards: tuple[ShardRef, ...]


class TrainingHalf:
    """Life: made inside the event loop, `run` until the ranks are gone; `execute`, `status` and the link serve gRPC
    meanwhile.
    """

    def __init__(
        self, settings: TrainingSettings, children: Children, offers: ShardOffers, changed: Callable[[], None]
    ) -> None:
        self._settings, self._children, self._offers, self._changed = settings, children, offers, changed
        self._publishing: Command | None = None
        self._layouts = Layouts(settings.half.environment.address)
        self._state = relay.State(leader=settings.leader)
        self._commands = CommandDispatcher(
            lambda command: self._take(relay.Ordered(command)), lambda key: self._take(relay.Expired(key))
        )
        self._ask: asyncio.Future[Command] | None = None
        self._ranks: Child | None = None
        self._refusal = settings.half.environment.input_error_file
        self._end: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._stopping: asyncio.Task[None] | None = None

    async def execute(self, command: Command) -> Reply:
        """See service.Half."""
        return await self._commands.execute(command)

    def status(self) -> HalfStatus:
        """See service.Half. `state`: starting, idle, following, exiting, or the verb that the ranks execute."""
        environment, state = self._settings.half.environment, self._state
        word = "following" if state.leader else "idle" if state.ready else "starting"
        if state.given and state.queue:
            word = state.queue[0].verb.value
        return HalfStatus(
            pod=environment.pod,
            kind=HalfKind.TRAINING,
            address=f"{environment.address}:{self._settings.half.port}",
            state="exiting" if state.exiting else word,
            version=state.queue[0].version if state.given and state.queue else 0,
            epoch=self._commands.ledger.epoch,
            pod_attempt=environment.attempt,
            attempt=0,
            message=state.message,
        )

    def terminate(self) -> None:
        """SIGTERM: end in order, children first."""
        self._take(relay.Terminate())

    async def run(self) -> int:
        """Until EXIT, `terminate` or the end of the ranks; returns the exit code."""
        if self._end.done():  # told to end before anything began
            return self._end.result()
        self._refusal.unlink(missing_ok=True)
        self._ranks = self._children.start(self._settings.ranks)
        watch = asyncio.get_running_loop().create_task(self._watch(self._ranks))
        code = await self._end
        watch.cancel()
        if code:
            log.error("%s", self._state.message)
        await self._children.stop_all(self._settings.half.grace_s / 2)
        return code

    async def next_command(self, wait_s: float) -> Command | None:
        """Rank 0 asks; None when `wait_s` seconds went by without a command. A newer ask ends an older one."""
        if self._ask is not None and not self._ask.done():
            self._ask.cancel()
        ask: asyncio.Future[Command] = asyncio.get_running_loop().create_future()
        self._ask = ask
        self._take(relay.Asked())
        try:
            return await asyncio.wait_for(ask, wait_s)
        except TimeoutError:
            return None
        finally:
            if self._ask is ask:
                self._ask = None
                self._take(relay.AskOver())

    def report(self, reply: Reply) -> None:
        """Rank 0 tells how a command went."""
        self._take(relay.Reported(reply))

    async def _watch(self, ranks: Child) -> None:
        ended = await ranks.wait()
        await self._children.end_orphans()  # torchrun's ranks have sessions of their own
        refused = self._refusal.read_text(encoding="utf-8") if self._refusal.exists() else ""
        self._take(relay.RanksEnded(ended.reason, refused))

    def _take(self, event: relay.Event) -> None:
        before = self._state
        self._state, acts = relay.step(self._state, event)
        for act in acts:
            self._perform(act)
        if self._state != before:
            self._changed()

    def _perform(self, act: relay.Act) -> None:
        match act:
            case relay.Give(command):
                if command.verb is Verb.PUBLISH:
                    self._publishing = command
                    self._offers.clear_slot(command.version % 2)
                if self._ask is not None and not self._ask.done():
                    self._ask.set_result(command)
            case relay.Answer(key, error, retryable, detail):
                if self._publishing is not None and self._publishing.key == key and not error:
                    self._offer(self._publishing.version, detail)
                self._commands.settle(key, error, retryable=retryable, detail=detail)
            case relay.StopRanks(grace_s):
                self._stopping = asyncio.get_running_loop().create_task(self._stop_ranks(grace_s))
            case relay.End(code):
                if not self._end.done():
                    self._end.set_result(code)

    def _offer(self, version: int, detail: str) -> None:
        """Serve what the ranks of this pod have published."""
        host = self._settings.half.environment.address
        try:
            published = codec.loads(_Shards, f'{{"shards":{detail or "[]"}}}').shards
            shards = self._layouts.at_hand(shard for shard in published if is_here(shard.address, host))
        except (ProtocolError, IntegrityError, OSError) as error:
            log.warning("what was published is not served to peers: %s", error)
            return
        if shards is None:
            log.warning("what was published is not served to peers: a layout of this pod's ranks is missing")
            return
        self._offers.offer(version, shards)

    async def _stop_ranks(self, grace_s: float) -> None:
        if self._ranks is None:
            self._take(relay.RanksEnded("they were not started"))
            return
        try:
            await asyncio.wait_for(self._ranks.wait(), grace_s)
        except TimeoutError:
            await self._ranks.stop(self._settings.half.grace_s / 2)


class TrainerLink(half_pb2_grpc.TrainerLinkServicer):
    """The service `TrainerLink` over a training half. `attempt`: the ranks of this start; others are refused."""

    def __init__(self, half: TrainingHalf, attempt: int) -> None:
        self._half, self._attempt = half, attempt

    async def NextCommand(self, request: half_pb2.NextCommandRequest, context: Any) -> half_pb2.Command:  # noqa: N802  # gRPC's name
        """See protos."""
        if request.attempt != self._attempt:
            raise StaleEpoch(
                f"ranks of attempt {request.attempt} are not those of attempt {self._attempt}", where="TrainerLink"
            )
        left = context.time_remaining()
        command = await self._half.next_command(max(0.0, min(request.wait_s, left - 1.0)))
        return convert.command_to_pb(command) if command else half_pb2.Command()

    async def Report(self, request: half_pb2.Reply, context: Any) -> half_pb2.Ack:  # noqa: N802  # gRPC's name
        """See protos."""
        self._half.report(convert.reply_from_pb(request))
        return half_pb2.Ack()
