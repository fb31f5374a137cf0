"""The operator's part of the platform's etcd: what masters say of their runs, and the end of a job's keys.

All jobs' `progress` keys are read together every few seconds, a hundred a call. etcd going away is told once per job
and ends no work here. A sweep that was not possible when a job was deleted is made up for later: now and then the uids
that have keys are compared with the jobs that exist, and what belongs to no job twice in a row is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from twinpod.api import names
from twinpod.coordination.etcd import EtcdStore
from twinpod.coordination.etcd_access import Access
from twinpod.coordination.keys import Keys
from twinpod.errors import EnvironmentFault, TwinpodError
from twinpod.records import codec
from twinpod.records.run import Progress
from twinpod_operator.nouns import Key, ProgressView, Reach, Sweep

log = logging.getLogger(__name__)
PREFIX = "/twinpod/"
NOTHING = ProgressView(reach=Reach.NOT_LOOKED)
REMEMBERED = 20_000  # uids of swept jobs
AWAY_S = 5.0


class EtcdAdmin:
    """Life: of a leader. The store reads its certificate again when it connects anew."""

    def __init__(self, store: EtcdStore, *, access: bool, clock: Callable[[], float] = time.time) -> None:
        self._store, self._with_access, self._clock = store, access, clock
        self._views: dict[str, ProgressView] = {}
        self._values: dict[str, str] = {}
        self._swept: OrderedDict[str, None] = OrderedDict()
        self._orphans: set[tuple[str, str]] = set()
        self._demanded = False
        self._away: EnvironmentFault | None = None  # what the newest call met, and until when the next ones meet it too
        self._away_until = -math.inf

    def view(self, uid: str) -> ProgressView:
        """See ProgressBook."""
        return self._views.get(uid, NOTHING)

    def swept(self, uid: str) -> bool:
        """See ProgressBook."""
        return uid in self._swept

    async def look(self, running: Mapping[str, Key]) -> list[Key]:
        """Reads the progress of the jobs (by uid); returns those of which something new is known."""
        for uid in [uid for uid in self._views if uid not in running]:
            del self._views[uid]
            self._values.pop(uid, None)
        wanted = {uid: Keys(namespace=key.namespace, job_uid=uid).progress for uid, key in running.items()}
        try:
            found = await self._store.get_many(list(wanted.values()))
        except EnvironmentFault as error:
            return self._unreachable(running, error)
        self._away_until = -math.inf
        now = self._clock()
        changed = []
        for uid, name in wanted.items():
            entry, before = found.get(name), self._views.get(uid)
            value = entry.value if entry is not None else ""
            if before is not None and before.reach is Reach.READ and self._values.get(uid) == value:
                self._views[uid] = replace(before, read_at=now)
                continue
            self._values[uid] = value
            self._views[uid] = ProgressView(reach=Reach.READ, record=_record(value), read_at=now)
            changed.append(running[uid])
        return changed

    def _unreachable(self, running: Mapping[str, Key], error: EnvironmentFault) -> list[Key]:
        changed = []
        for uid, key in running.items():
            before = self._views.get(uid, NOTHING)
            if before.reach is not Reach.UNREACHABLE:
                self._views[uid] = replace(before, reach=Reach.UNREACHABLE, message=error.line())
                changed.append(key)
        if changed:
            log.warning("progress of %d jobs is unknown: %s", len(changed), error)
        return changed

    async def sweep(self, job: Sweep) -> None:
        """Removes the job's keys and its user. `Unreachable` when etcd is away: it is made up for later."""
        with self._at_hand():
            await self._remove(job.namespace, job.uid)
        self._swept[job.uid] = None
        while len(self._swept) > REMEMBERED:
            self._swept.popitem(last=False)

    async def admit(self, namespace: str, uid: str) -> None:
        """The job's user may use the job's keys; nothing without access control."""
        if not self._with_access:
            return
        access = Access(self._store)
        with self._at_hand():
            if not self._demanded:
                await access.demand()
                self._demanded = True
            await access.admit(names.etcd_user(uid), Keys(namespace=namespace, job_uid=uid).prefix)

    @contextlib.contextmanager
    def _at_hand(self) -> Iterator[None]:
        """A call for one job. While etcd is known to be away it fails at once: workers that wait for it one after the
        other would hold up every other job.
        """
        if self._away is not None and self._clock() < self._away_until:
            raise self._away
        try:
            yield
        except EnvironmentFault as error:
            self._away, self._away_until = error, self._clock() + AWAY_S
            raise

    async def sweep_orphans(self, exists: Callable[[str], bool]) -> int:
        """Removes the keys of jobs that were gone already at the last call; says of how many."""
        parts = [key.split("/") for key in await self._store.keys(PREFIX)]  # "", twinpod, namespace, uid, ...
        held = {(part[2], part[3]) for part in parts if len(part) > 4}
        gone = {(namespace, uid) for namespace, uid in held if not exists(uid)}
        twice, self._orphans = gone & self._orphans, gone
        for namespace, uid in sorted(twice):
            await self._remove(namespace, uid)
            log.info("swept the keys of a job that is gone: %s/%s", namespace, uid)
        return len(twice)

    async def _remove(self, namespace: str, uid: str) -> None:
        await self._store.delete_prefix(Keys(namespace=namespace, job_uid=uid).prefix)
        if self._with_access:
            await Access(self._store).dismiss(names.etcd_user(uid))

    async def close(self) -> None:
        """End all connections."""
        await self._store.close()


async def keep_looking(
    admin: EtcdAdmin, running: Callable[[], Mapping[str, Key]], wake: Callable[[Key], None], every_s: float
) -> None:
    """Until cancelled; a job is woken when its master said something new."""
    while True:
        began = time.monotonic()
        if jobs := running():
            for key in await admin.look(jobs):
                wake(key)
        await asyncio.sleep(max(0.0, every_s - (time.monotonic() - began)))


async def keep_sweeping(admin: EtcdAdmin, exists: Callable[[str], bool], every_s: float) -> None:
    """Until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await admin.sweep_orphans(exists)
        except EnvironmentFault as error:
            log.info("keys of jobs that are gone are looked for later: %s", error)


def _record(value: str) -> Progress | None:
    """The record; one that this release cannot read counts as none, and is told."""
    if not value:
        return None
    try:
        return codec.loads(Progress, value)
    except TwinpodError as error:
        log.warning("a master's progress cannot be read: %s", error)
        return None
