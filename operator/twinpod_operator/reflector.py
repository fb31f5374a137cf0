"""Keeps one kind of child in a sink: a list in pages, then a watch from there, and again when that ends.

A page is read, turned into views and dropped before the next one; nothing of the API's JSON stays.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from twinpod_operator.kinds import Kind
from twinpod_operator.kube import Api
from twinpod_operator.kube_errors import ApiError, ApiUnreachable, Expired, NotFound
from twinpod_operator.nouns import Manifest

log = logging.getLogger(__name__)
ABSENT_RETRY_S = 60.0  # a kind that this API server does not serve may come with an upgrade
_BACKOFF_S = (0.2, 1.0, 2.0, 5.0, 10.0)


class Sink(Protocol):
    """Where objects of one kind go."""

    def put(self, raw: Manifest) -> None:
        """The object is there, new or changed."""
        ...

    def remove(self, raw: Manifest) -> None:
        """The object is gone."""
        ...

    def keep_only(self, seen: set[tuple[str, str]], version: int) -> None:
        """A whole list as of `version` had these (namespace, name) and no others."""
        ...


class Reflector:
    """Life: `run` until cancelled. `synced` is set when the first list is in the sink."""

    def __init__(self, api: Api, kind: Kind, sink: Sink, *, labels: str = "", fields: str = "") -> None:
        self._api, self._kind, self._sink = api, kind, sink
        self._labels, self._fields = labels, fields
        self.synced = asyncio.Event()
        self.served = True  # False while the API server does not know the kind

    async def run(self) -> None:
        """Lists and watches for ever."""
        failures = 0
        while True:
            try:
                version = await self._list()
                failures = 0
                await self._watch(version)
            except Expired:
                continue
            except NotFound:
                self.served = False
                self.synced.set()
                await asyncio.sleep(ABSENT_RETRY_S)
            except (ApiError, ApiUnreachable) as error:
                log.warning("%s: list or watch interrupted, going on by itself: %s", self._kind.plural, error)
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1

    async def _list(self) -> str:
        seen: set[tuple[str, str]] = set()
        version = ""
        async for page in self._api.pages(self._kind, labels=self._labels, fields=self._fields):
            for raw in page.items:
                raw.setdefault("kind", self._kind.kind)  # items of a list do not say it
                seen.add((raw["metadata"].get("namespace", ""), raw["metadata"]["name"]))
                self._put(raw)
            version = version or page.version
            await asyncio.sleep(0)
        self._sink.keep_only(seen, int(version))
        self.served = True
        self.synced.set()
        return version

    async def _watch(self, version: str) -> None:
        """Watches from `version` on until that is too old."""
        failures = 0
        while True:
            try:
                watch = self._api.watch(self._kind, version, labels=self._labels, fields=self._fields)
                async for events in watch:
                    for event in events:
                        version = event["object"]["metadata"]["resourceVersion"]
                        self._take(event["type"], event["object"])
                    failures = 0
            except ApiUnreachable as error:
                log.info("%s: watch interrupted, going on by itself: %s", self._kind.plural, error)
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1

    def _take(self, what: str, raw: Manifest) -> None:
        if what in ("ADDED", "MODIFIED"):
            self._put(raw)
        elif what == "DELETED":
            self._sink.remove(raw)

    def _put(self, raw: Manifest) -> None:
        """One object that nobody can read must not end the watch of all others."""
        try:
            self._sink.put(raw)
        except Exception:  # whatever it is, it is told with its trace
            metadata = raw["metadata"]
            log.exception(
                "%s %s/%s cannot be read and is left out",
                self._kind.kind,
                metadata.get("namespace", ""),
                metadata["name"],
            )
