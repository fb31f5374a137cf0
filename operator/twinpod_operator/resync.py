"""Everything again, every few minutes: what a watch may have missed is put right, and every key gets a look.

Kopf's watch does not tell of objects that went while it was not connected; a whole list does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from twinpod_operator.kinds import OURS
from twinpod_operator.kube import Api
from twinpod_operator.kube_errors import ApiError, ApiUnreachable
from twinpod_operator.nouns import Key
from twinpod_operator.world import World

log = logging.getLogger(__name__)


async def resync(api: Api, world: World) -> None:
    """Lists our kinds and puts right what differs."""
    for kind in OURS:
        seen: set[Key] = set()
        version = 0
        async for page in api.pages(kind):
            version = version or int(page.version)
            for raw in page.items:
                raw.setdefault("kind", kind.kind)
                metadata = raw["metadata"]
                seen.add(Key(kind=kind.kind, namespace=metadata["namespace"], name=metadata["name"]))
                world.put(raw)
            await asyncio.sleep(0)
        world.keep_only(kind.kind, seen, version)


async def keep_resyncing(api: Api, world: World, wake: Callable[[Key, float], None], every_s: float) -> None:
    """Until cancelled. Keys are woken one after the other within a tenth of the time, not all at once."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await resync(api, world)
        except (ApiError, ApiUnreachable) as error:
            log.warning("resync left out: %s", error)
            continue
        keys = list(world)
        for place, key in enumerate(keys):
            wake(key, every_s / 10 * place / max(1, len(keys)))
