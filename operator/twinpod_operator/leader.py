"""Who leads: a Lease that one replica holds and renews; whoever waits takes it when it was not renewed in time.

Theory of operation. A replica that waits looks at the Lease every few seconds and measures with its own clock how long
it has not changed; times of other machines are never compared. The holder renews it several times within its duration;
each renewal opens the fence (`fence.py`) until two thirds of the duration after the request was sent. So the old
holder has stopped writing before a new one may begin, whatever was stopped or slow in between. A holder that finds
somebody else's name in the Lease, or cannot renew, ends; the process then exits and starts again as one that waits.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twinpod_operator.fence import Fence, boot_clock
from twinpod_operator.kinds import LEASE
from twinpod_operator.kube import Api
from twinpod_operator.kube_errors import AlreadyExists, ApiConflict, ApiError, ApiUnreachable, LeaseLost, NotFound
from twinpod_operator.nouns import Manifest

log = logging.getLogger(__name__)
FENCE_SHARE = 2 / 3  # of the lease's duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The Lease as it was last seen to change, with our own time of that."""

    holder: str
    version: str
    duration_s: float
    since: float


def may_take(seen: Seen | None, identity: str, now: float) -> bool:
    """Nobody has it, we have it ourselves (an earlier life of this process), or it was not renewed in time. Pure."""
    if seen is None or seen.holder in ("", identity):
        return True
    return now - seen.since > seen.duration_s


def look(lease: Manifest, before: Seen | None, now: float) -> Seen:
    """What is seen now; `since` stays as long as the Lease does not change. Pure."""
    spec = lease.get("spec") or {}
    version = lease["metadata"]["resourceVersion"]
    since = before.since if before is not None and before.version == version else now
    return Seen(
        holder=spec.get("holderIdentity") or "",
        version=version,
        duration_s=float(spec.get("leaseDurationSeconds") or 15),
        since=since,
    )


class Leader:
    """One replica's part in the election. Life: `acquire`, then `keep` until it raises, `release` on a good end.

    `api` must not be fenced by `fence` itself, as the Lease is what opens it: its writes carry a resource version.
    """

    def __init__(
        self,
        api: Api,
        fence: Fence,
        *,
        namespace: str,
        name: str,
        identity: str,
        duration_s: float,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self._api, self._fence, self._namespace, self._name = api, fence, namespace, name
        self._identity, self._duration_s, self._clock = identity, duration_s, clock
        self._lease: Manifest | None = None
        self.leading = False

    async def acquire(self) -> None:
        """Returns as the holder; waits as long as somebody else renews."""
        seen: Seen | None = None
        told = ""
        while True:
            try:
                lease: Manifest | None = await self._api.get(LEASE, self._namespace, self._name)
            except NotFound:
                lease = None
            except (ApiError, ApiUnreachable) as error:
                log.warning("the lease cannot be read: %s", error)
                await asyncio.sleep(self._duration_s / 5)
                continue
            now = self._clock()
            seen = None if lease is None else look(lease, seen, now)
            if may_take(seen, self._identity, now) and await self._take(lease, now):
                return
            if seen is not None and seen.holder != told:
                told = seen.holder
                log.info("%s leads; waiting", told)
            await asyncio.sleep(self._duration_s / 7.5)

    async def keep(self) -> None:
        """Renews until that fails for good: LeaseLost."""
        while True:
            await asyncio.sleep(self._duration_s / 5)
            now = self._clock()
            try:
                self._lease = await self._api.replace(self._manifest(self._lease, new=False))
            except ApiConflict as error:
                if not await self._still_ours():
                    self._fence.close()
                    raise LeaseLost("somebody else has taken the lease", where="leader election") from error
            except (ApiError, ApiUnreachable) as error:
                log.warning("the lease was not renewed: %s", error)
            else:
                self._fence.renewed(now)
            self._fence.check()

    async def release(self) -> None:
        """Give the lease away, so that the next replica need not wait; nothing is written by us afterwards."""
        self._fence.close()
        if self._lease is None:
            return
        free = self._manifest(self._lease, new=False)
        free["spec"]["holderIdentity"] = ""
        try:
            await self._api.replace(free)
        except (ApiError, ApiUnreachable) as error:
            log.warning("the lease was not released: %s", error)

    async def _still_ours(self) -> bool:
        """After a conflict: a renewal whose answer was lost is ours, too; the next one goes over its version."""
        try:
            lease = await self._api.get(LEASE, self._namespace, self._name)
        except (ApiError, ApiUnreachable):
            return False
        if (lease.get("spec") or {}).get("holderIdentity") != self._identity:
            return False
        self._lease = lease
        return True

    async def _take(self, lease: Manifest | None, now: float) -> bool:
        try:
            manifest = self._manifest(lease, new=True)
            self._lease = await (self._api.create(manifest) if lease is None else self._api.replace(manifest))
        except (ApiConflict, AlreadyExists):
            return False  # another replica was quicker
        except (ApiError, ApiUnreachable) as error:
            log.warning("the lease was not taken: %s", error)
            return False
        self._fence.renewed(now)
        self.leading = True
        log.info("leading as %s", self._identity)
        return True

    def _manifest(self, lease: Manifest | None, *, new: bool) -> Manifest:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: dict[str, Any] = dict((lease or {}).get("spec") or {})
        spec |= {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._duration_s)),
            "renewTime": now,
        }
        if new:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (lease is not None)
        metadata = {"name": self._name, "namespace": self._namespace}
        if lease is not None:
            metadata["resourceVersion"] = lease["metadata"]["resourceVersion"]
        return {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": spec}
