"""Two masters of one job, on a node that fell silent and on another one: the newer announces itself, the older leaves.

The epoch is the fence (design 8.5): books and etcd refuse what an older master writes. This is the rest of it: an older
master ends by itself as soon as it sees the newer epoch, so that it lets go of the books' lock and orders nobody about.
Only then does the newer open the books, which two hosts must never have open at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from twinpod.errors import InUse
from twinpod.master.books import Books, Identity
from twinpod.master.registry import Pause, Registry

__all__ = ["leave_when_superseded", "take_books"]

log = logging.getLogger(__name__)
LOOK_S = 1.0
LET_GO_S = 60.0  # for the older master to see the epoch, end its phase's writes and let go
EPOCH_TRIES = 60  # seconds that a start waits for etcd


async def take_books(folder: Path, identity: Identity, registry: Registry, pause: Pause) -> Books:
    """`Books.open`, once no older master has them. InUse when it does not let go: it cannot see etcd, say."""
    announced = False
    for _ in range(int(LET_GO_S / LOOK_S)):
        try:
            return Books.open(folder, identity)
        except InUse as error:
            if not announced:
                log.warning("an older master still lives; it is told to let go", extra={"why": error.what})
                await registry.take_epoch(0, EPOCH_TRIES)
                announced = True
        await pause(LOOK_S)
    return Books.open(folder, identity)


async def leave_when_superseded(registry: Registry, epoch: Callable[[], int], pause: Pause) -> None:
    """Goes on for ever; StaleEpoch once a newer master has begun. A master without an epoch yet (0) is left alone."""
    while True:
        await pause(LOOK_S)
        if epoch():
            await registry.check_epoch(epoch())
