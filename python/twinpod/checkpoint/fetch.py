"""Fetching: shards of other pods into arenas of this one, as `plan` decides.

An arena `fetched-<owner>.arena` is made once for each owner whose shards are not in this pod, with the layout of that
owner, two slots; version v goes into slot v % 2. Bytes go from gRPC's buffer straight into the mapped slot. A shard
counts only when the digest of what lies in the slot is right; then peers are served from it. What a broken or cancelled
staging has already brought is kept, and the next staging of the same bytes goes on behind it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from twinpod.arena import Arena
from twinpod.checkpoint import plan
from twinpod.checkpoint.carriers import Carrier
from twinpod.checkpoint.shard_offers import ShardOffers
from twinpod.errors import ProtocolError, TwinpodError, Unreachable
from twinpod.records.weights import ServeRequest, ShardLayout, ShardRecord, ShardRequest, WeightVersion

log = logging.getLogger(__name__)

STREAMS = 2  # shards under way at once
STALL_S = 15.0  # without a byte, after which a source counts as gone
SLOWEST = 1 << 20  # bytes a second; with it, how long a stream may take at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """What a staging brought: the version with every shard in this pod, and its cost."""

    version: WeightVersion
    seconds: float
    nbytes: int  # over the network; 0 when everything was here


class Stager:
    """Life: as long as the half; one `stage` at a time. `address`: host:port by which peers reach this half."""

    def __init__(
        self,
        folder: Path,
        address: str,
        carrier: Carrier,
        offers: ShardOffers,
        *,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        stall_s: float = STALL_S,
    ) -> None:
        self._folder, self._address, self.carrier, self.offers = folder, address, carrier, offers
        self._pause, self._stall_s = pause, stall_s
        self._arenas: dict[str, Arena] = {}  # by owner
        self._begun: dict[tuple[str, int], plan.Transfer] = {}  # by owner and slot: what lies there, whole or not
        self._nbytes = 0

    @property
    def host(self) -> str:
        """By which peers reach this pod."""
        return plan.host_of(self._address)

    async def stage(self, serving: ServeRequest) -> Staging:
        """Bring what is not here. Cancel it at will.

        Unreachable (retryable) names what every source said; EnvironmentFault says that shared memory is too small.
        """
        began, self._nbytes = time.monotonic(), 0
        transfers = plan.plan_fetch(serving, self.host)
        await asyncio.to_thread(self._tidy, {transfer.shard.layout.owner for transfer in transfers})
        gate = asyncio.Semaphore(STREAMS)
        version = serving.weights.version
        tasks = [asyncio.create_task(self._bring(transfer, version, gate)) for transfer in transfers]
        try:
            brought = dict(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        shards = tuple(brought.get(shard.layout.owner, shard) for shard in serving.weights.shards)
        return Staging(
            version=replace(serving.weights, shards=shards),
            seconds=time.monotonic() - began,
            nbytes=self._nbytes,
        )

    async def close(self) -> None:
        """End connections and let go of the arenas; their files stay for the engine and the next life."""
        await self.carrier.close()
        for arena in self._arenas.values():
            arena.close()
        self._arenas.clear()

    async def _bring(self, transfer: plan.Transfer, version: int, gate: asyncio.Semaphore) -> tuple[str, ShardRecord]:
        """One shard, from whoever has it; owner and record of the shard in this pod."""
        owner, slot = transfer.shard.layout.owner, version % 2
        async with gate:
            arena = await self._arena(transfer.shard.layout)
            place = (owner, slot)
            transfer = self._go_on(transfer, place)
            self.offers.clear(str(arena.path), slot)
            where = f"version {version}, shard {owner}"
            while True:
                move = plan.next_move(transfer, time.monotonic())
                match move:
                    case plan.Ask():
                        transfer = await self._ask(plan.asked(transfer, move), move, arena, version, place)
                    case plan.Wait(seconds):
                        await self._pause(seconds)
                    case plan.GiveUp(why):
                        raise Unreachable(f"could not be fetched: {why}", where=where, mend="it is tried again")
                    case plan.Check():
                        found = await asyncio.to_thread(arena.digest, slot, len(os.sched_getaffinity(0)))
                        if found == transfer.shard.digest:
                            break
                        if transfer.givers:
                            log.warning("%s from %s: digest %s is wrong", where, ", ".join(transfer.givers), found)
                            transfer = plan.disproved(transfer, found)
                        else:  # it was no shard of anybody that lay here
                            transfer = replace(transfer, done=0)
                self._begun[place] = transfer
        record = replace(transfer.shard, path=str(arena.path), slot=slot, address=self._address)
        self.offers.offer(version, [record])
        return owner, record

    async def _ask(
        self, transfer: plan.Transfer, ask: plan.Ask, arena: Arena, version: int, place: tuple[str, int]
    ) -> plan.Transfer:
        """Take from one source what it gives."""
        shard = transfer.shard
        request = ShardRequest(
            owner=shard.layout.owner,
            version=version,
            digest=shard.digest,
            slot_bytes=shard.layout.slot_bytes,
            begin=ask.begin,
            end=transfer.end,
        )
        target, limit_s = arena.slot(place[1]), self._stall_s + (transfer.end - ask.begin) / SLOWEST
        try:
            async with aclosing(self.carrier.stream(request, ask.address, limit_s)) as stream:
                while transfer.done < transfer.end:
                    async with asyncio.timeout(self._stall_s):
                        message = await anext(stream, b"")
                    if not message or transfer.done + len(message) > transfer.end:
                        raise ProtocolError(f"sent {'too few' if not message else 'too many'} bytes", where=ask.address)
                    target[transfer.done : transfer.done + len(message)] = np.frombuffer(message, np.uint8)
                    transfer = plan.received(transfer, ask.address, len(message))
                    self._begun[place] = transfer
                    self._nbytes += len(message)
                async with asyncio.timeout(
                    self._stall_s
                ):  # the source has the last word: the slot was its own all along
                    await anext(stream, b"")
        except (TwinpodError, TimeoutError) as error:
            why = error.line() if isinstance(error, TwinpodError) else f"silent for {self._stall_s:g} s"
            log.info("shard %s from %s broke off at byte %d: %s", request.owner, ask.address, transfer.done, why)
            if transfer.done >= transfer.end:  # all came, and the slot was written meanwhile: the digest will tell
                return transfer
            return plan.failed(transfer, ask.address, why, time.monotonic())
        return transfer

    def _go_on(self, transfer: plan.Transfer, place: tuple[str, int]) -> plan.Transfer:
        """Behind what an earlier staging left in the slot when it is of the same shard; what lies there whole, or lay
        there before this process, is proved by its digest before anything is asked for.
        """
        left = self._begun.get(place)
        if left is None:
            return replace(transfer, done=transfer.end)
        if left.shard.digest != transfer.shard.digest or left.end != transfer.end:
            return transfer
        return replace(transfer, done=left.done, givers=left.givers if left.done < left.end else ())

    async def _arena(self, layout: ShardLayout) -> Arena:
        """The arena of an owner's shards, made when there is none of this layout."""
        known = self._arenas.get(layout.owner)
        if known is not None and known.layout == layout:
            return known
        if known is not None:
            self._forget(layout.owner)
        path = self._path(layout.owner)
        fresh = not path.exists()
        arena = await asyncio.to_thread(Arena.create, path, layout)
        self._arenas[layout.owner] = arena
        if fresh:
            empty = ShardRecord(layout=layout, path=str(path), slot=0, digest="", address="")
            nothing = plan.Transfer(shard=empty, end=0, sources=())
            self._begun[layout.owner, 0] = self._begun[layout.owner, 1] = nothing
        return arena

    def _path(self, owner: str) -> Path:
        return self._folder / f"fetched-{re.sub(r'[^A-Za-z0-9-]', '_', owner)}.arena"

    def _tidy(self, owners: set[str]) -> None:
        """Free the memory of owners that this version does not have."""
        for owner in self._arenas.keys() - owners:
            self._forget(owner)
        wanted = {self._path(owner) for owner in owners}
        for path in self._folder.glob("fetched-*.arena"):
            if path not in wanted:
                path.unlink(missing_ok=True)

    def _forget(self, owner: str) -> None:
        arena = self._arenas.pop(owner)
        for slot in range(arena.slots):
            self.offers.clear(str(arena.path), slot)
            self._begun.pop((owner, slot), None)
        arena.close()
