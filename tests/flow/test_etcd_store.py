"""One contract for both stores: in memory, and a real etcd under TLS with client certificates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.flow.etcd_alarm import no_space

from twinpod.coordination.epochs import check_epoch, commit_version, take_epoch
from twinpod.coordination.etcd import EtcdStore
from twinpod.coordination.keys import Keys, VersionNote
from twinpod.coordination.memory import MemoryStore
from twinpod.coordination.store import Change, Entry, Store
from twinpod.errors import Conflict, InputError, ProtocolError, StaleEpoch, Unreachable
from twinpod.rpc.certificates import issue, make_authority
from twinpod.testing.etcd_server import EtcdServer

KEYS = Keys(namespace="n", job_uid="u")


class Contract:
    """What every store promises. Subclasses give `store` and `let_leases_run_out`."""

    async def test_a_key_that_is_not_there_is_none(self, store: Store) -> None:
        assert await store.get("/a") is None

    async def test_what_was_put_is_read_with_its_revision(self, store: Store) -> None:
        revision = await store.put("/a", "grün")
        assert await store.get("/a") == Entry(key="/a", value="grün", revision=revision)

    async def test_revisions_grow(self, store: Store) -> None:
        assert await store.put("/a", "1") < await store.put("/b", "1") < await store.put("/a", "2")

    async def test_a_list_holds_what_begins_with_the_prefix_by_key(self, store: Store) -> None:
        for key in ("/x/2", "/x/1", "/xy", "/y"):
            await store.put(key, key)
        assert [entry.key for entry in await store.list("/x/")] == ["/x/1", "/x/2"]

    async def test_delete_says_whether_it_was_there(self, store: Store) -> None:
        await store.put("/a", "1")
        assert await store.delete("/a")
        assert not await store.delete("/a")
        assert await store.get("/a") is None

    async def test_a_swap_with_the_right_revision_writes(self, store: Store) -> None:
        first = await store.put("/a", "1", expect=0)
        second = await store.put("/a", "2", expect=first)
        assert await store.get("/a") == Entry(key="/a", value="2", revision=second)

    @pytest.mark.parametrize("expect", [0, 1])
    async def test_a_swap_with_a_wrong_revision_changes_nothing(self, store: Store, expect: int) -> None:
        await store.put("/other", "0")
        await store.put("/other", "0")
        revision = await store.put("/a", "1")
        with pytest.raises(Conflict, match=f"/a: has revision {revision}, not {expect}"):
            await store.put("/a", "2", expect=expect)
        assert await store.get("/a") == Entry(key="/a", value="1", revision=revision)

    async def test_a_swap_of_a_key_that_is_gone_is_a_conflict(self, store: Store) -> None:
        revision = await store.put("/a", "1")
        await store.delete("/a")
        with pytest.raises(Conflict, match="has revision 0"):
            await store.put("/a", "2", expect=revision)

    async def test_a_big_value_is_refused(self, store: Store) -> None:
        with pytest.raises(InputError, match="does not belong into etcd"):
            await store.put("/a", "x" * 100_001)

    async def test_a_watch_tells_what_is_there_then_what_changes(self, store: Store) -> None:
        await store.put("/w/a", "1")
        await store.put("/else", "1")
        watch = store.watch("/w/")
        assert _told(await anext(watch)) == ("/w/a", "1")
        await store.put("/w/b", "2")
        assert _told(await anext(watch)) == ("/w/b", "2")
        await store.put("/else", "2")
        await store.delete("/w/a")
        assert _told(await anext(watch)) == ("/w/a", None)
        await watch.aclose()  # type: ignore[attr-defined]

    async def test_a_key_goes_when_its_lease_runs_out_and_watchers_see_it(self, store: Store) -> None:
        await store.put("/l/a", "1", lease_s=1)
        watch = store.watch("/l/")
        assert _told(await anext(watch)) == ("/l/a", "1")
        async with asyncio.timeout(20):
            self.let_leases_run_out(store)
            assert _told(await anext(watch)) == ("/l/a", None)
        await watch.aclose()  # type: ignore[attr-defined]

    async def test_a_put_without_a_lease_stays(self, store: Store) -> None:
        await store.put("/l/a", "1", lease_s=1)
        await store.put("/l/a", "2")
        await store.put("/l/b", "1", lease_s=1)
        watch = store.watch("/l/b")
        assert _told(await anext(watch)) == ("/l/b", "1")
        async with asyncio.timeout(20):
            self.let_leases_run_out(store)
            assert _told(await anext(watch)) == ("/l/b", None)
        assert await store.get("/l/a") is not None

    async def test_masters_that_start_at_once_get_different_epochs(self, store: Store) -> None:
        epochs = await asyncio.gather(*(take_epoch(store, KEYS) for _ in range(5)))
        assert sorted(epochs) == [1, 2, 3, 4, 5]
        await check_epoch(store, KEYS, 5)
        with pytest.raises(StaleEpoch, match="epoch 4 is over, epoch 5 has begun"):
            await check_epoch(store, KEYS, 4)

    async def test_versions_only_grow_within_an_epoch_and_old_epochs_commit_nothing(self, store: Store) -> None:
        old = await take_epoch(store, KEYS)
        await commit_version(store, KEYS, _note(old, 7))
        again = await commit_version(store, KEYS, _note(old, 7))
        entry = await store.get(KEYS.version)
        assert entry is not None
        assert entry.revision == again
        with pytest.raises(ProtocolError, match="version 6 comes after version 7"):
            await commit_version(store, KEYS, _note(old, 6))
        new = await take_epoch(store, KEYS)
        with pytest.raises(StaleEpoch):
            await commit_version(store, KEYS, _note(old, 8))
        await commit_version(store, KEYS, _note(new, 5))

    def let_leases_run_out(self, store: Store) -> None:
        raise NotImplementedError


def _told(change: Change) -> tuple[str, str | None]:
    return change.key, change.entry.value if change.entry else None


def _note(epoch: int, version: int) -> VersionNote:
    return VersionNote(version=version, epoch=epoch, iteration=0, digest="xxh3:0", owners=("a:1",))


class TestMemory(Contract):
    @pytest.fixture
    def store(self) -> Store:
        self.now = 0.0
        return MemoryStore(lambda: self.now)

    def let_leases_run_out(self, store: Store) -> None:
        assert isinstance(store, MemoryStore)
        self.now += 1.0
        store.expire()

    async def test_away_is_unreachable_and_comes_back(self) -> None:
        store = MemoryStore()
        await store.put("/a", "1")
        store.away = True
        with pytest.raises(Unreachable):
            await store.get("/a")
        store.away = False
        assert await store.get("/a") is not None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> EtcdServer:
    return EtcdServer(tmp_path_factory.mktemp("etcd"))


@pytest.fixture(scope="module", autouse=True)
def end(server: EtcdServer):
    yield
    server.kill()


@pytest.fixture
async def etcd(server: EtcdServer) -> AsyncIterator[EtcdStore]:
    """The server, up and empty."""
    if not server.running:
        await server.start()
    store = EtcdStore([server.endpoint], server.tls, timeout_s=2.0)
    for entry in await store.list("/"):
        await store.delete(entry.key)
    yield store
    await store.close()


class TestEtcd(Contract):
    @pytest.fixture
    def store(self, etcd: EtcdStore) -> Store:
        return etcd

    def let_leases_run_out(self, store: Store) -> None:
        """They do by themselves: its clock is real."""


async def test_a_dead_etcd_is_one_line_with_its_endpoints_and_comes_back_by_itself(
    server: EtcdServer, etcd: EtcdStore
) -> None:
    revision = await etcd.put("/a", "1")
    server.kill()
    with pytest.raises(
        Unreachable, match=rf"etcd at {server.endpoint}: no member answered within 2 s .*start it again"
    ):
        await etcd.get("/a")
    with pytest.raises(Unreachable):
        await etcd.put("/a", "2", expect=revision)
    await server.start()
    assert await etcd.put("/a", "2", expect=revision) > revision


async def test_a_watch_survives_a_restart_of_etcd_and_tells_what_it_missed(server: EtcdServer, etcd: EtcdStore) -> None:
    await etcd.put("/w/a", "1")
    await etcd.put("/w/b", "1")
    watch = etcd.watch("/w/")
    assert [_told(await anext(watch)) for _ in range(2)] == [("/w/a", "1"), ("/w/b", "1")]
    waiting = asyncio.ensure_future(anext(watch))
    server.kill()
    await server.start()
    other = EtcdStore([server.endpoint], server.tls)
    await other.delete("/w/a")
    await other.put("/w/b", "2")
    await other.close()
    async with asyncio.timeout(20):
        told = [_told(await waiting), _told(await anext(watch))]
    assert sorted(told, key=str) == [("/w/a", None), ("/w/b", "2")]
    await watch.aclose()  # type: ignore[attr-defined]


async def test_a_full_database_refuses_writes_for_a_while_and_answers_reads(etcd: EtcdStore) -> None:
    revision = await etcd.put("/full/a", "1")
    watch = etcd.watch("/full/")
    assert _told(await anext(watch)) == ("/full/a", "1")
    await no_space(etcd, on=True)
    try:
        for write in (
            etcd.put("/full/a", "2"),
            etcd.put("/full/b", "1", lease_s=5),
            etcd.put("/full/a", "2", expect=revision),
        ):
            with pytest.raises(Unreachable, match=r"its database is full .*NOSPACE.*disarm the alarm") as refused:
                await write
            assert refused.value.retryable
        assert await etcd.get("/full/a") == Entry(key="/full/a", value="1", revision=revision)
        assert [entry.key for entry in await etcd.list("/full/")] == ["/full/a"]
    finally:
        await no_space(etcd, on=False)
    await etcd.put("/full/a", "2", expect=revision)
    assert _told(await anext(watch)) == ("/full/a", "2")
    await watch.aclose()  # type: ignore[attr-defined]


async def test_with_one_dead_member_the_other_one_answers(server: EtcdServer, etcd: EtcdStore) -> None:
    store = EtcdStore(["localhost:1", server.endpoint], server.tls)
    revision = await store.put("/a", "1")
    assert await store.put("/a", "2", expect=revision) > revision
    assert [entry.value for entry in await store.list("/a")] == ["2"]
    await store.close()


async def test_a_client_of_another_authority_is_not_heard(server: EtcdServer, etcd: EtcdStore, tmp_path: Path) -> None:
    issue(make_authority("stranger"), ["localhost"]).write(tmp_path)
    (tmp_path / "ca.crt").write_bytes((server.tls / "ca.crt").read_bytes())
    stranger = EtcdStore([server.endpoint], tmp_path, timeout_s=2.0)
    with pytest.raises(Unreachable):
        await stranger.get("/a")
    await stranger.close()


async def test_a_missing_certificate_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tls\.crt: No such file"):
        await EtcdStore(["localhost:1"], tmp_path).get("/a")
