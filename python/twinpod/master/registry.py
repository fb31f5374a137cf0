"""The master's side of etcd: epoch, members, operation, version, progress. etcd away stops nothing (design 8.6).

Epoch and version must get through: they are tried until they do. Members are the last ones known while it is away; a
lease that ran out removes a member from the list and nothing more. Operation and progress are best effort.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from twinpod.coordination.epochs import check_epoch, commit_version, take_epoch
from twinpod.coordination.keys import Keys, Operation, VersionNote
from twinpod.coordination.store import Store
from twinpod.errors import Conflict, EnvironmentFault, ProtocolError, Unreachable
from twinpod.records import codec
from twinpod.records.life import HalfStatus
from twinpod.records.run import Progress

log = logging.getLogger(__name__)
T = TypeVar("T")
Pause = Callable[[float], Awaitable[None]]

RETRY_S = 1.0


class Registry:
    """Life: as long as the master.

    `away` is called with a line when etcd stops answering, and with "" when it is back.
    """

    def __init__(self, store: Store, keys: Keys, pause: Pause) -> None:
        self._store, self._keys, self._pause = store, keys, pause
        self._members: tuple[HalfStatus, ...] = ()
        self.away: Callable[[str], None] = lambda line: None
        self.refused = ""  # why the last write was not taken; reads may go on

    async def take_epoch(self, newest: int, tries: int) -> int:
        """A job epoch above every one in etcd and above `newest`, the books' own (etcd may have lost its memory)."""

        async def above() -> int:
            while (epoch := await take_epoch(self._store, self._keys)) <= newest:
                pass
            return epoch

        return await self._insist(above, tries)

    async def check_epoch(self, epoch: int) -> None:
        """StaleEpoch when a newer master has begun; nothing is known while etcd is away or refuses us."""
        try:
            await check_epoch(self._store, self._keys, epoch)
        except EnvironmentFault as error:
            log.debug("epoch not checked: %s", error)

    async def publish_version(self, note: VersionNote) -> None:
        """Make it the committed version.

        Waits for etcd as long as it takes. StaleEpoch when a newer master has begun.
        """

        async def commit() -> None:
            await commit_version(self._store, self._keys, note)

        await self._insist(commit, None)

    async def members(self) -> tuple[HalfStatus, ...]:
        """All halves with a living lease, or the last known ones."""
        try:
            entries = await self._store.list(self._keys.members)
        except Unreachable as error:
            self.away(str(error))
            return self._members
        self.away(self.refused)
        found = []
        for entry in entries:
            try:
                found.append(codec.loads(HalfStatus, entry.value))
            except ProtocolError as error:
                log.warning("a member is not understood: %s", error, extra={"key": entry.key})
        self._members = tuple(found)
        return self._members

    async def say(self, operation: Operation) -> None:
        """What the job is doing."""
        await self._try(self._keys.operation, codec.dumps(operation))

    async def progress(self, progress: Progress) -> None:
        """What the operator and the command line show."""
        await self._try(self._keys.progress, codec.dumps(progress))

    async def _try(self, key: str, value: str) -> None:
        try:
            await self._store.put(key, value)
        except Unreachable as error:
            self._told(str(error))
        else:
            self._told("")

    async def _insist(self, act: Callable[[], Awaitable[T]], tries: int | None) -> T:
        tried = 0
        while True:
            try:
                result = await act()
            except (Unreachable, Conflict) as error:
                tried += 1
                if tries is not None and tried >= tries:
                    raise
                self._told(str(error))
                await self._pause(RETRY_S)
                continue
            self._told("")
            return result

    def _told(self, refused: str) -> None:
        self.refused = refused
        self.away(refused)
