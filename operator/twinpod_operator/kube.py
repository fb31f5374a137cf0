"""The one adapter to the API server, over aiohttp.

Every request has a deadline and is counted; every answer of 400 or above is an error of `kube_errors`; every write
passes the fence as late as can be: when its connection is there and its bytes are about to be sent. Lists come in
pages, read at one resource version; watches ask for bookmarks and end by themselves now and then, so that a reader
goes on from the last version that it saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import orjson

from twinpod.api import names
from twinpod_operator.kinds import Kind, check_granted, kind_of
from twinpod_operator.kube_errors import ApiUnreachable, error_of
from twinpod_operator.login import Bearer, Login
from twinpod_operator.nouns import Manifest

PAGE = 500  # objects of a page: some 3 MB of pods
WATCH_S = 300.0  # the server ends a watch after this and up to half as much again
SILENCE_S = 150.0  # bookmarks come every minute
REQUEST_TIMEOUT_S = 30.0
CONNECTIONS = 64
CREATED = 201
_MERGE = "application/merge-patch+json"
_STRATEGIC = "application/strategic-merge-patch+json"
_APPLY = "application/apply-patch+yaml"  # JSON is YAML


class Gate(Protocol):
    """Says whether writes may be sent."""

    def check(self) -> None:
        """LeaseLost when they may not."""
        ...


class Count(Protocol):
    """Counts requests."""

    def request(self, verb: str, kind: str, code: int) -> None:
        """One answer; code 0 when there was none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Part of a list. `version`: where a watch goes on after the last page."""

    items: list[Manifest]
    version: str
    last: bool


class _FencedRequest(aiohttp.ClientRequest):
    """Asks the gate of its loop's adapter when everything else is ready."""

    gate: Gate

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        """See aiohttp; LeaseLost instead when the gate is closed by now."""
        self.gate.check()
        return await super().send(conn)


class Api:
    """Life: `async with Api(...)`. Reads pass at any time, writes only while `gate` is open."""

    def __init__(
        self, login: Login, gate: Gate, count: Count, *, identity: str = "", timeout_s: float = REQUEST_TIMEOUT_S
    ) -> None:
        """`identity`: the replica's, for audit logs."""
        self._login, self._gate, self._count, self._timeout_s = login, gate, count, timeout_s
        self._agent = f"{names.MANAGED_BY}/{identity or 'unnamed'}"
        self._bearer = Bearer(login)
        self._sessions: list[aiohttp.ClientSession] = []

    async def __aenter__(self) -> Api:
        fenced = type("FencedRequest", (_FencedRequest,), {"gate": self._gate})
        connector = aiohttp.TCPConnector(ssl=self._login.context(), limit=CONNECTIONS, keepalive_timeout=60.0)
        shared: dict[str, Any] = {"connector": connector, "connector_owner": False, "auto_decompress": True}
        shared["headers"] = {"User-Agent": self._agent}
        self._connector = connector
        self._reading = aiohttp.ClientSession(**shared)
        self._writing = aiohttp.ClientSession(**shared, request_class=fenced)
        return self

    async def __aexit__(self, *_: object) -> None:
        for session in (self._reading, self._writing):
            await session.close()
        await self._connector.close()

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        """One object."""
        return await self._ask("get", kind, "GET", kind.path(namespace, name))

    async def pages(
        self, kind: Kind, *, namespace: str = "", labels: str = "", fields: str = ""
    ) -> AsyncIterator[Page]:
        """All objects, page by page, as of one moment. Expired when that took too long: begin again."""
        query = _selectors(labels, fields) | {"limit": str(PAGE)}
        while True:
            answer = await self._ask("list", kind, "GET", kind.path(namespace), query=query)
            metadata = answer["metadata"]
            following = metadata.get("continue") or ""
            yield Page(items=answer["items"] or [], version=metadata["resourceVersion"], last=not following)
            if not following:
                return
            query["continue"] = following

    async def watch(
        self, kind: Kind, version: str, *, namespace: str = "", labels: str = "", fields: str = ""
    ) -> AsyncIterator[list[Manifest]]:
        """Events after `version`, in the batches in which they arrive, until the server ends the watch.

        An event is {"type": ADDED, MODIFIED, DELETED or BOOKMARK, "object": ...}. Expired when `version` is too old.
        """
        check_granted("watch", kind)
        seconds = int(WATCH_S * random.uniform(1.0, 1.5))
        query = _selectors(labels, fields) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        where = f"watch of {kind.plural}"
        limits = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout_s, sock_read=SILENCE_S)
        with _as_unreachable(where):
            async with self._reading.get(
                self._login.server + kind.path(namespace),
                params=query,
                headers=self._bearer.headers(),
                timeout=limits,
            ) as answer:
                self._count.request("watch", kind.kind, answer.status)
                if answer.status >= 400:
                    raise error_of(answer.status, _body(await answer.read()), where)
                rest = b""
                async for chunk in answer.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    if events := [orjson.loads(line) for line in lines if line]:
                        _raise_for(events[-1], where)
                        yield events

    async def create(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """POST; the answer as the server keeps it, or as it would with `dry_run`, which asks every plug-in."""
        kind, namespace = kind_of(manifest["kind"]), manifest["metadata"].get("namespace", "")
        query = {"fieldManager": names.FIELD_MANAGER, "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        return await self._ask("create", kind, "POST", kind.path(namespace), query=query, body=manifest)

    async def apply(self, manifest: Manifest, uid: str) -> Manifest:
        """Server-side apply. With an uid: forced, to that object only; ApiConflict when it is another or gone.

        Without: makes the object; ApiConflict when one is there that is not as we want it.
        """
        return (await self._apply(manifest, uid))[1]

    async def apply_new(self, manifest: Manifest) -> tuple[Manifest, bool]:
        """`apply` without an uid, and whether the object was not there before."""
        code, answer = await self._apply(manifest, "")
        return answer, code == CREATED

    async def _apply(self, manifest: Manifest, uid: str) -> tuple[int, Manifest]:
        kind, metadata = kind_of(manifest["kind"]), manifest["metadata"]
        body = {**manifest, "metadata": {**metadata, "uid": uid}} if uid else manifest
        path = kind.path(metadata.get("namespace", ""), metadata["name"])
        query = {"fieldManager": names.FIELD_MANAGER, "force": str(bool(uid)).lower(), "fieldValidation": "Strict"}
        return await self._answer("patch", kind, "PATCH", path, query=query, body=body, content=_APPLY)

    async def replace(self, manifest: Manifest) -> Manifest:
        """PUT; with metadata.resourceVersion only over that version."""
        kind, metadata = kind_of(manifest["kind"]), manifest["metadata"]
        path = kind.path(metadata.get("namespace", ""), metadata["name"])
        return await self._ask("update", kind, "PUT", path, body=manifest)

    async def merge(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        body: Manifest,
        *,
        subresource: str = "",
        strategic: bool = False,
    ) -> Manifest:
        """A merge patch; metadata.uid in the body is a precondition."""
        path, content = kind.path(namespace, name, subresource), _STRATEGIC if strategic else _MERGE
        query = {"fieldManager": names.FIELD_MANAGER}
        return await self._ask(
            "patch", kind, "PATCH", path, subresource=subresource, query=query, body=body, content=content
        )

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str, *, grace_s: int | None = None) -> Manifest:
        """Delete the object of that uid; the answer is the object while it takes its time, else a Status."""
        body: Manifest = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        return await self._ask("delete", kind, "DELETE", kind.path(namespace, name), body=body)

    async def _ask(
        self,
        verb: str,
        kind: Kind,
        method: str,
        path: str,
        *,
        subresource: str = "",
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content: str = "application/json",
    ) -> Manifest:
        """One request and its whole answer."""
        asked = self._answer(verb, kind, method, path, subresource=subresource, query=query, body=body, content=content)
        return (await asked)[1]

    async def _answer(
        self,
        verb: str,
        kind: Kind,
        method: str,
        path: str,
        *,
        subresource: str = "",
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content: str = "application/json",
    ) -> tuple[int, Manifest]:
        """The status as well."""
        check_granted(verb, kind, subresource)
        where = f"{verb} of {path.rpartition('/namespaces/')[2]}"
        session = self._reading if method == "GET" else self._writing
        headers = self._bearer.headers() | ({"Content-Type": content} if body is not None else {})
        code = 0
        try:
            with _as_unreachable(where):
                async with session.request(
                    method,
                    self._login.server + path,
                    params=query,
                    data=orjson.dumps(body) if body is not None else None,
                    headers=headers,
                    timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                ) as answer:
                    code, data = answer.status, await answer.read()
                    if code >= 400:
                        raise error_of(code, _body(data), where, answer.headers.get("Retry-After", ""))
        finally:
            self._count.request(verb, kind.kind, code)
        return code, _body(data)


@contextlib.contextmanager
def _as_unreachable(where: str) -> Any:
    try:
        yield
    except TimeoutError as error:
        raise ApiUnreachable("no answer in time", where=where) from error
    except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
        raise ApiUnreachable(f"no answer: {str(error) or type(error).__name__}", where=where) from error


def _selectors(labels: str, fields: str) -> dict[str, str]:
    found = {"labelSelector": labels, "fieldSelector": fields}
    return {key: value for key, value in found.items() if value}


def _body(data: bytes) -> Manifest:
    """The answer; what is no JSON object (a proxy's page) becomes a Status with its beginning as the message."""
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else {"message": data[:500].decode(errors="replace")}


def _raise_for(event: Manifest, where: str) -> None:
    if event["type"] == "ERROR":
        status = event["object"]
        raise error_of(int(status.get("code") or 500), status, where)
