"""Keeps a half's status in etcd under a lease. etcd away stops nothing: it is told once, tried again, and told when
it is back (design 8.6).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from twinpod.coordination.keys import MEMBER_LEASE_S
from twinpod.coordination.store import Store
from twinpod.errors import ProtocolError, TwinpodError
from twinpod.records import codec
from twinpod.records.life import HalfStatus

log = logging.getLogger(__name__)
REFRESH_S = MEMBER_LEASE_S / 3
LEAVE_S = 2.0  # of the grace that a half has to end


class Member:
    """Life: `run` until cancelled; `leave` at an orderly end.

    news: set by the half when its status has changed. superseded: called once when a newer pod of the same name has
    reported: this one runs on a node that was given up, and must not be taken for the other.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        status: Callable[[], HalfStatus],
        news: asyncio.Event,
        superseded: Callable[[], None],
    ) -> None:
        self._store, self._key, self._status, self._news = store, key, status, news
        self._superseded = superseded
        self.outdated = False  # a newer pod has the name
        self._away = False

    async def run(self) -> None:
        """Write at once, at every change, and often enough to keep the lease, until a newer pod has the name."""
        while True:
            self._news.clear()
            if await self._write():
                log.warning("a newer pod of this name has reported; this one ends")
                self.outdated = True
                self._superseded()
                return
            try:
                await asyncio.wait_for(self._news.wait(), REFRESH_S)
            except TimeoutError:
                continue  # nothing new: the lease is due

    async def leave(self) -> None:
        """Remove the key, if it is still ours: an orderly end need not wait for the lease."""
        try:
            async with asyncio.timeout(LEAVE_S):
                if not await self._newer():
                    await self._store.delete(self._key)
        except (TwinpodError, TimeoutError) as error:
            log.info("could not leave: %s", error)

    async def _newer(self) -> bool:
        """Whether the key tells of a newer pod."""
        entry = await self._store.get(self._key)
        if entry is None:
            return False
        try:
            return codec.loads(HalfStatus, entry.value).pod_attempt > self._status().pod_attempt
        except ProtocolError as error:
            log.warning("what stands in etcd is not understood and is written over: %s", error)
            return False

    async def _write(self) -> bool:
        """True, and nothing written, when a newer pod has the name."""
        try:
            if await self._newer():
                return True
            await self._store.put(self._key, codec.dumps(self._status()), lease_s=MEMBER_LEASE_S)
        except TwinpodError as error:
            if not self._away:
                log.warning("status not reported, going on without: %s", error)
            self._away = True
            return False
        if self._away:
            log.warning("etcd is back: status reported")
        self._away = False
        return False
