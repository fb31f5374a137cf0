"""Taking and checking the job epoch (design 8.5), and committing a version, each one compare-and-swap."""

from __future__ import annotations

from twinpod.coordination.keys import Keys, VersionNote
from twinpod.coordination.store import Store
from twinpod.errors import Conflict, ProtocolError, StaleEpoch
from twinpod.records import codec


async def take_epoch(store: Store, keys: Keys) -> int:
    """The next job epoch, now ours. Two masters that start at once get two different ones."""
    while True:
        entry = await store.get(keys.epoch)
        newest = int(entry.value) if entry else 0
        try:
            await store.put(keys.epoch, str(newest + 1), expect=entry.revision if entry else 0)
        except Conflict:
            continue  # somebody else took that number: the next one is ours
        return newest + 1


async def check_epoch(store: Store, keys: Keys, epoch: int) -> None:
    """StaleEpoch when a newer master has begun."""
    entry = await store.get(keys.epoch)
    newest = int(entry.value) if entry else 0
    if newest > epoch:
        raise StaleEpoch(
            f"epoch {epoch} is over, epoch {newest} has begun",
            where=keys.epoch,
            mend="another master runs this job; end this one",
        )


async def commit_version(store: Store, keys: Keys, note: VersionNote) -> int:
    """Make `note` the committed version; returns its revision. Safe to repeat.

    StaleEpoch when a newer master has begun, ProtocolError when the same epoch would go back in version: versions
    only grow within an epoch; a later epoch may go back to its snapshot.
    """
    await check_epoch(store, keys, note.epoch)
    entry = await store.get(keys.version)
    value = codec.dumps(note)
    if entry is not None:
        if entry.value == value:
            return entry.revision
        held = codec.loads(VersionNote, entry.value)
        if held.epoch > note.epoch:
            raise StaleEpoch(
                f"version {held.version} was committed by epoch {held.epoch}, this is epoch {note.epoch}",
                where=keys.version,
            )
        if held.epoch == note.epoch and held.version >= note.version:
            raise ProtocolError(
                f"version {note.version} comes after version {held.version} of the same epoch", where=keys.version
            )
    return await store.put(keys.version, value, expect=entry.revision if entry else 0)
