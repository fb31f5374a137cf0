"""The adapter to the API server against a small server of its own kind: pages, watches, errors, and the fence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from twinpod_operator import kube
from twinpod_operator.fence import Fence
from twinpod_operator.kinds import LEASE, POD
from twinpod_operator.kube import Api
from twinpod_operator.kube_errors import AlreadyExists, ApiUnreachable, Expired, LeaseLost, Refused
from twinpod_operator.leader import Leader
from twinpod_operator.login import Login
from twinpod_operator.reflector import Reflector

Handler = Callable[[web.Request], Any]
MANIFEST = {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "n", "name": "x"}}


class Counted:
    def __init__(self) -> None:
        self.requests: list[tuple[str, str, int]] = []

    def request(self, verb: str, kind: str, code: int) -> None:
        self.requests.append((verb, kind, code))


class Scene:
    """A server whose answers a test sets, an adapter to it, and a fence with a clock of the test."""

    def __init__(self, url: str) -> None:
        self.now = 0.0
        self.fence = Fence(10, clock=lambda: self.now)
        self.fence.renewed(0.0)
        self.counted = Counted()
        self.seen: list[tuple[str, str, dict[str, str], Any]] = []
        self.handler: Handler = lambda request: web.json_response({})
        self.login = Login(server=url)

    def api(self, timeout_s: float = 5.0) -> Api:
        return Api(self.login, self.fence, self.counted, timeout_s=timeout_s)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.text()
        self.seen.append((request.method, request.path, dict(request.query), json.loads(body) if body else None))
        found = self.handler(request)
        answered: web.StreamResponse = await found if asyncio.iscoroutine(found) else found
        return answered


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    application = web.Application()
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    made = Scene("")
    application.router.add_route("*", "/{any:.*}", made.answer)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.login = Login(server=f"http://127.0.0.1:{runner.addresses[0][1]}")
    yield made
    await runner.cleanup()


def listed(items: list[dict[str, Any]], version: str, following: str = "") -> web.Response:
    return web.json_response({"items": items, "metadata": {"resourceVersion": version, "continue": following}})


def named(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"namespace": "n", "name": name, "uid": name, "resourceVersion": str(version)}}


async def test_a_list_comes_in_pages(scene: Scene) -> None:
    scene.handler = lambda request: (
        listed([named("b", 2)], "7") if "continue" in request.query else listed([named("a", 1)], "7", "more")
    )
    async with scene.api() as api:
        pages = [page async for page in api.pages(POD, labels="a=b")]
    assert [[item["metadata"]["name"] for item in page.items] for page in pages] == [["a"], ["b"]]
    assert [query.get("continue") for _, _, query, _ in scene.seen] == [None, "more"]
    assert all(query["labelSelector"] == "a=b" for _, _, query, _ in scene.seen)


async def test_events_are_whole_however_the_bytes_come(scene: Scene) -> None:
    lines = b"".join(
        json.dumps({"type": "ADDED", "object": named(name, 1) | {"big": "x" * 200_000}}).encode() + b"\n"
        for name in "ab"
    )

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for start in range(0, len(lines), 70_001):
            await response.write(lines[start : start + 70_001])
        return response

    scene.handler = stream
    async with scene.api() as api:
        batches = [batch async for batch in api.watch(POD, "5")]
    assert [event["object"]["metadata"]["name"] for batch in batches for event in batch] == ["a", "b"]
    assert scene.seen[0][2]["allowWatchBookmarks"] == "true"


async def test_a_watch_that_is_too_old_says_so(scene: Scene) -> None:
    status = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}
    scene.handler = lambda request: web.Response(text=json.dumps(status) + "\n")
    async with scene.api() as api:
        with pytest.raises(Expired):
            async for _ in api.watch(POD, "1"):
                pass


async def test_a_reflector_lists_watches_and_goes_on_from_its_last_version(scene: Scene) -> None:
    told: list[str] = []
    enough = asyncio.Event()

    class Sink:
        def put(self, raw: dict[str, Any]) -> None:
            told.append("+" + raw["metadata"]["name"] + raw["kind"])

        def remove(self, raw: dict[str, Any]) -> None:
            told.append("-" + raw["metadata"]["name"])
            enough.set()

        def keep_only(self, seen: set[tuple[str, str]], version: int) -> None:
            told.append(f"={len(seen)}@{version}")

    def answer(request: web.Request) -> web.Response:
        if "watch" not in request.query:
            return listed([named("a", 1)], "5")
        version = request.query["resourceVersion"]
        what = {"5": ("BOOKMARK", "", 8), "8": ("DELETED", "a", 9)}.get(version)
        if what is None:
            return web.Response(text="")
        event = {"type": what[0], "object": {"kind": "Pod", **named(what[1], what[2])}}
        return web.Response(text=json.dumps(event) + "\n")

    scene.handler = answer
    async with scene.api() as api:
        reflector = Reflector(api, POD, Sink())
        running = asyncio.create_task(reflector.run())
        async with asyncio.timeout(10):
            await reflector.synced.wait()
            await enough.wait()
        running.cancel()
    assert told == ["+aPod", "=1@5", "-a"]


async def test_an_object_that_cannot_be_read_is_left_out_and_ends_no_watch(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[str] = []

    class Sink:
        def put(self, raw: dict[str, Any]) -> None:
            if raw["metadata"]["name"] == "poison":
                raise ValueError("could not convert string to float: 'abc'")
            taken.append(raw["metadata"]["name"])

        def remove(self, raw: dict[str, Any]) -> None: ...

        def keep_only(self, seen: set[tuple[str, str]], version: int) -> None: ...

    scene.handler = lambda request: (
        web.Response(text="") if "watch" in request.query else listed([named("poison", 1), named("a", 2)], "5")
    )
    async with scene.api() as api:
        reflector = Reflector(api, POD, Sink())
        running = asyncio.create_task(reflector.run())
        async with asyncio.timeout(10):
            await reflector.synced.wait()
        assert not running.done()
        running.cancel()
    assert taken == ["a"]
    assert "Pod n/poison cannot be read and is left out" in caplog.text


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        (409, {"reason": "AlreadyExists", "message": "there"}, AlreadyExists),
        (403, {"reason": "Forbidden", "message": "exceeded quota: q"}, Refused),
    ],
)
async def test_an_answer_of_no_is_a_typed_error(
    scene: Scene, code: int, status: dict[str, Any], kind: type[Exception]
) -> None:
    scene.handler = lambda request: web.json_response(status, status=code)
    async with scene.api() as api:
        with pytest.raises(kind, match="create of n/pods"):
            await api.create(MANIFEST)
    assert scene.counted.requests == [("create", "Pod", code)]


async def test_silence_is_unreachable(scene: Scene) -> None:
    async def never(request: web.Request) -> web.Response:
        del request
        await asyncio.Event().wait()
        raise AssertionError

    scene.handler = never
    async with scene.api(timeout_s=0.2) as api:
        with pytest.raises(ApiUnreachable, match="no answer in time"):
            await api.create(MANIFEST)


async def test_nobody_there_is_unreachable() -> None:
    async with Api(Login(server="http://127.0.0.1:1"), Fence(1), Counted(), timeout_s=2) as api:
        with pytest.raises(ApiUnreachable):
            await api.get(LEASE, "n", "x")


async def test_no_write_is_sent_after_the_lease_ran_out_and_reads_still_are(scene: Scene) -> None:
    async with scene.api() as api:
        await api.create(MANIFEST)
        scene.now = 10.0
        for write in (
            lambda: api.create(MANIFEST),
            lambda: api.apply(MANIFEST, "u"),
            lambda: api.merge(POD, "n", "x", {}),
            lambda: api.delete(POD, "n", "x", "u"),
        ):
            with pytest.raises(LeaseLost):
                await write()
        await api.get(LEASE, "n", "x")
    assert [method for method, *_ in scene.seen] == ["POST", "GET"]


async def test_a_write_that_waited_for_a_connection_asks_the_fence_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube, "CONNECTIONS", 1)
    first, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        del request
        first.set()
        await go_on.wait()
        return web.json_response({})

    scene.handler = slow
    async with scene.api() as api:
        holding = asyncio.create_task(api.create(MANIFEST))
        await first.wait()
        waiting = asyncio.create_task(api.create(MANIFEST))
        await asyncio.sleep(0)
        scene.now = 10.0
        go_on.set()
        await holding
        with pytest.raises(LeaseLost):
            await waiting
    assert len(scene.seen) == 1


async def test_a_leader_that_finds_another_name_in_the_lease_writes_no_more(scene: Scene) -> None:
    held: dict[str, Any] = {}

    async def store(request: web.Request) -> web.Response:
        nonlocal held
        if "/pods" in request.path:
            return web.json_response({})
        if request.method == "GET":
            return web.json_response(held) if held else web.json_response({"message": "none"}, status=404)
        sent = await request.json()
        if held and sent["metadata"].get("resourceVersion") != held["metadata"]["resourceVersion"]:
            return web.json_response({"reason": "Conflict", "message": "changed"}, status=409)
        version = int(held["metadata"]["resourceVersion"]) + 1 if held else 1
        held = sent | {"metadata": sent["metadata"] | {"resourceVersion": str(version)}}
        return web.json_response(held)

    scene.handler = store
    scene.fence.close()
    async with scene.api() as api, Api(scene.login, OPEN, scene.counted) as election:
        leader = Leader(
            election,
            scene.fence,
            namespace="n",
            name="l",
            identity="me",
            duration_s=0.15,
            clock=lambda: scene.now,
        )
        await leader.acquire()
        assert scene.fence.open
        await api.create(MANIFEST)
        keeping = asyncio.create_task(leader.keep())
        renewed = [method for method, *_ in scene.seen].count("PUT")
        async with asyncio.timeout(10):
            while [method for method, *_ in scene.seen].count("PUT") < renewed + 2:
                await asyncio.sleep(0.01)
        held["spec"]["holderIdentity"] = "other"
        held["metadata"]["resourceVersion"] = "100"
        with pytest.raises(LeaseLost, match="somebody else"):
            await asyncio.wait_for(keeping, 10)
        with pytest.raises(LeaseLost):
            await api.create(MANIFEST)


class _Open:
    def check(self) -> None: ...


OPEN = _Open()
