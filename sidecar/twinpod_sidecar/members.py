"""Keeps a half's status in etcd under a lease. etcd away stops nothing: it is told once, tried again, and told when
it is back (design 8.6).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from twinpod.coordination.keys import MEMBER_LEASE_S
from twinpod.coordination.store import Store
from twinpod.errors import TwinpodError
from twinpod.records import codec
from twinpod.records.life import HalfStatus

log = logging.getLogger(__name__)
REFRESH_S = MEMBER_LEASE_S / 3
LEAVE_S = 2.0  # of the grace that a half has to end


class Member:
    """Life: `run` until cancelled; `changed` after every change of the status; `leave` at an orderly end. `news` is
    set by the half when its status has changed.
    """

    def __init__(self, store: Store, key: str, status: Callable[[], HalfStatus], news: asyncio.Event) -> None:
        self._store, self._key, self._status, self._news = store, key, status, news
        self._away = False

    async def run(self) -> None:
        """Write at once, at every change, and often enough to keep the lease."""
        while True:
            self._news.clear()
            await self._write()
            try:
                await asyncio.wait_for(self._news.wait(), REFRESH_S)
            except TimeoutError:
                continue  # nothing new: the lease is due

    async def leave(self) -> None:
        """Remove the key: an orderly end need not wait for the lease."""
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._store.delete(self._key)
        except (TwinpodError, TimeoutError) as error:
            log.info("could not leave: %s", error)

    async def _write(self) -> None:
        try:
            await self._store.put(self._key, codec.dumps(self._status()), lease_s=MEMBER_LEASE_S)
        except TwinpodError as error:
            if not self._away:
                log.warning("status not reported, going on without: %s", error)
            self._away = True
            return
        if self._away:
            log.warning("etcd is back: status reported")
        self._away = False
