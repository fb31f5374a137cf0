"""The operator's part of etcd, against a real one: progress of many jobs, sweeps, and each job's own user."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from twinpod.api import names
from twinpod.coordination.etcd import EtcdStore
from twinpod.coordination.keys import Keys
from twinpod.errors import EnvironmentFault, Unreachable
from twinpod.records import codec
from twinpod.records.run import PhaseSeconds, Progress
from twinpod.rpc.certificates import Authority, issue, make_authority
from twinpod.testing.etcd_server import EtcdServer
from twinpod_operator.etcd_admin import EtcdAdmin
from twinpod_operator.nouns import Key, Reach, Sweep

JOBS = {f"u{n}": Key(kind="RLJob", namespace="n", name=f"x{n}") for n in range(250)}


def progress_now(iteration: int) -> Progress:
    return Progress(
        state="Running",
        epoch=1,
        iteration=iteration,
        iterations=9,
        version=iteration,
        phase="generate",
        since=0.0,
        groups_finished=0,
        groups_wanted=0,
        reward=0.5,
        right=0.5,
        length=1.0,
        tokens_per_s=1.0,
        seconds=PhaseSeconds(generate=0.0, train=0.0, weights=0.0, switch=0.0, snapshot=0.0, other=0.0),
        waiting_for="",
        eta_s=1.0,
        message="",
        updated=0.0,
    )


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority("platform")


@pytest.fixture
async def server(tmp_path: Path, authority: Authority) -> AsyncIterator[EtcdServer]:
    made = EtcdServer(tmp_path, authority)
    await made.start()
    yield made
    made.kill()


def connect(server: EtcdServer, authority: Authority, user: str) -> EtcdStore:
    folder = server.folder / user
    issue(authority, [user]).write(folder)
    return EtcdStore([server.endpoint], folder, timeout_s=2)


@pytest.fixture
async def store(server: EtcdServer, authority: Authority) -> AsyncIterator[EtcdStore]:
    made = connect(server, authority, "root")
    yield made
    await made.close()


def keys(uid: str) -> Keys:
    return Keys(namespace="n", job_uid=uid)


async def test_progress_of_many_jobs_is_read_together_and_told_when_it_changes(store: EtcdStore) -> None:
    admin = EtcdAdmin(store, access=False, clock=lambda: 7.0)
    await store.put(keys("u3").progress, codec.dumps(progress_now(iteration=3)))
    assert sorted(await admin.look(JOBS)) == sorted(JOBS.values()), "of each it is known now that there is none"
    assert await admin.look(JOBS) == []
    found = admin.view("u3")
    assert (found.reach, found.read_at, found.record and found.record.iteration) == (Reach.READ, 7.0, 3)
    assert admin.view("u4").record is None
    await store.put(keys("u3").progress, codec.dumps(progress_now(iteration=4)))
    assert await admin.look(JOBS) == [JOBS["u3"]]
    await store.put(keys("u5").progress, "not a record")
    assert await admin.look({}) == []
    assert admin.view("u3").reach is Reach.NOT_LOOKED


async def test_etcd_away_is_told_once_and_what_was_known_stays(server: EtcdServer, store: EtcdStore) -> None:
    admin = EtcdAdmin(store, access=False)
    jobs = {"u1": JOBS["u1"]}
    await store.put(keys("u1").progress, codec.dumps(progress_now(iteration=3)))
    await admin.look(jobs)
    server.kill()
    assert await admin.look(jobs) == [JOBS["u1"]]
    assert await admin.look(jobs) == []
    assert admin.view("u1").reach is Reach.UNREACHABLE
    assert admin.view("u1").record is not None
    await server.start()
    assert await admin.look(jobs) == [JOBS["u1"]]
    assert admin.view("u1").reach is Reach.READ


async def test_a_sweep_takes_the_job_s_keys_and_no_others(server: EtcdServer, store: EtcdStore) -> None:
    admin = EtcdAdmin(store, access=False)
    for uid in ("u1", "u10"):
        await store.put(keys(uid).epoch, "1")
    sweep = Sweep(namespace="n", name="x1", uid="u1")
    await admin.sweep(sweep)
    await admin.sweep(sweep)
    assert admin.swept("u1")
    assert await store.keys("/twinpod/") == (keys("u10").epoch,)
    server.kill()
    with pytest.raises(Unreachable):
        await admin.sweep(Sweep(namespace="n", name="x10", uid="u10"))
    assert not admin.swept("u10")


async def test_while_etcd_is_away_a_call_for_one_job_holds_up_no_other(server: EtcdServer, store: EtcdStore) -> None:
    now = [0.0]
    admin = EtcdAdmin(store, access=True, clock=lambda: now[0])
    server.kill()
    with pytest.raises(Unreachable):
        await admin.admit("n", "u1")
    async with asyncio.timeout(0.5):  # the store itself would try for two seconds
        for uid in ("u1", "u2", "u3"):
            with pytest.raises(Unreachable):
                await admin.admit("n", uid)
    await server.start()
    now[0] += 60.0
    await admin.admit("n", "u1")


async def test_what_could_not_be_swept_is_swept_later_when_it_belongs_to_no_job_twice(store: EtcdStore) -> None:
    admin = EtcdAdmin(store, access=False)
    for uid in ("gone", "here"):
        await store.put(keys(uid).epoch, "1")
    assert await admin.sweep_orphans(lambda uid: uid == "here") == 0, "a job may be younger than what was seen"
    assert await admin.sweep_orphans(lambda uid: uid == "here") == 1
    assert await store.keys("/twinpod/") == (keys("here").epoch,)


async def test_a_job_s_user_has_the_job_s_keys_and_nothing_else(
    server: EtcdServer, store: EtcdStore, authority: Authority
) -> None:
    admin = EtcdAdmin(store, access=True)
    for _ in range(2):
        await admin.admit("n", "u1")
    mine = connect(server, authority, names.etcd_user("u1"))
    await mine.put(keys("u1").epoch, "1", lease_s=10)
    assert (await mine.list(keys("u1").prefix))[0].value == "1"
    assert (await anext(mine.watch(keys("u1").prefix))).key == keys("u1").epoch
    for refused in (mine.get(keys("u2").epoch), mine.put(keys("u2").epoch, "1"), mine.list("/twinpod/")):
        with pytest.raises(EnvironmentFault, match="permission denied"):
            await refused
    stranger = connect(server, authority, "stranger")
    with pytest.raises(EnvironmentFault):
        await stranger.get("/a")
    await admin.sweep(Sweep(namespace="n", name="x1", uid="u1"))
    await admin.sweep(Sweep(namespace="n", name="x1", uid="u1"))
    with pytest.raises(EnvironmentFault):
        await mine.get(keys("u1").epoch)
    assert await store.keys("/twinpod/") == ()
    for one in (mine, stranger):
        await one.close()


async def test_jobs_that_come_disturb_no_job_that_is_there(
    server: EtcdServer, store: EtcdStore, authority: Authority
) -> None:
    admin = EtcdAdmin(store, access=True)
    await admin.admit("n", "u0")
    mine = connect(server, authority, names.etcd_user("u0"))
    coming = asyncio.gather(*(admin.admit("n", f"u{number}") for number in range(1, 100)))
    revision = written = 0
    while not coming.done():
        revision = await mine.put(keys("u0").epoch, str(written), expect=revision)
        await mine.put(keys("u0").progress, str(written))
        written += 1
    await coming
    assert written, "nothing was tried"
    await mine.close()
