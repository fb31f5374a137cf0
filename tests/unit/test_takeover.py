"""Two masters of one job: the newer gets the books, the older ends, and nothing of the older comes after the newer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from twinpod.coordination.keys import Keys
from twinpod.coordination.memory import MemoryStore
from twinpod.coordination.store import Entry
from twinpod.errors import EnvironmentFault, InUse, StaleEpoch
from twinpod.master import takeover
from twinpod.master.books import Books, Identity
from twinpod.master.registry import Registry
from twinpod.master.takeover import leave_when_superseded, take_books

IDENTITY = Identity(job="j", fields={})
pytestmark = pytest.mark.timeout(20)


async def turn(seconds: float) -> None:
    """A pause without its seconds."""
    del seconds
    await asyncio.sleep(0)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def registry(store: MemoryStore) -> Registry:
    return Registry(store, Keys(namespace="n", job_uid="u"), turn)


async def older(folder: Path, registry: Registry) -> None:
    """A master at work: it has the books and its epoch until it is superseded."""
    books = Books.open(folder, IDENTITY)
    try:
        books.begin_epoch(await registry.take_epoch(books.epoch, 1))
        await leave_when_superseded(registry, lambda: books.epoch, turn)
    finally:
        books.close()


async def test_a_newer_master_gets_the_books_and_the_older_one_ends(tmp_path: Path, registry: Registry) -> None:
    first = asyncio.create_task(older(tmp_path, registry))
    await turn(0)
    books = await take_books(tmp_path, IDENTITY, registry, turn)
    with pytest.raises(StaleEpoch, match="epoch 2 has begun"):
        await first
    assert books.epoch == 1
    books.begin_epoch(await registry.take_epoch(books.epoch, 1))
    assert books.epoch == 3
    books.close()


async def test_a_master_alone_announces_nothing(tmp_path: Path, registry: Registry) -> None:
    books = await take_books(tmp_path, IDENTITY, registry, turn)
    assert await registry.take_epoch(0, 1) == 1
    books.close()


async def test_a_master_that_does_not_let_go_is_told_of(tmp_path: Path, registry: Registry) -> None:
    held = Books.open(tmp_path, IDENTITY)
    with pytest.raises(InUse, match="works in this folder"):
        await take_books(tmp_path, IDENTITY, registry, turn)
    held.close()


async def test_an_etcd_that_refuses_supersedes_nobody() -> None:
    """It has lost its users, or the job is being deleted: a look alone ends no run."""

    class Refusing(MemoryStore):
        async def get(self, key: str) -> Entry | None:
            raise EnvironmentFault("etcd refused: no such user", where=key)

    await Registry(Refusing(), Keys(namespace="n", job_uid="u"), turn).check_epoch(1)


async def test_etcd_away_supersedes_nobody(tmp_path: Path, store: MemoryStore, registry: Registry) -> None:
    first = asyncio.create_task(older(tmp_path, registry))
    await turn(0)
    store.away = True
    for _ in range(int(takeover.LET_GO_S)):
        await turn(0)
    assert not first.done()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
