"""The only file with Kopf: it watches our own kinds and puts what it sees into the world, nothing else.

Kopf writes nothing here: no finalizers (there are no change handlers), no annotations, no events, no peering; it serves
nothing, and it does not scan for kinds again, so it is begun only when the API server serves ours.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from typing import Any

import kopf

from twinpod.api import names
from twinpod_operator.kinds import OURS
from twinpod_operator.kube import Api
from twinpod_operator.kube_errors import ApiError, ApiUnreachable
from twinpod_operator.login import Login
from twinpod_operator.world import World

log = logging.getLogger(__name__)
CRD_RETRY_S = 2.0
TOKEN_AGE = datetime.timedelta(minutes=10)  # a pod's token is read again after this


async def wait_for_kinds(api: Api) -> None:
    """Returns when every kind of ours is served; says which one is waited for."""
    for kind in OURS:
        told = False
        while True:
            try:
                async for _ in api.pages(kind):
                    break
                break
            except (ApiError, ApiUnreachable) as error:
                if not told:
                    log.warning("waiting for %s; kubectl apply -f manifests/crds: %s", kind.plural, error)
                    told = True
                await asyncio.sleep(CRD_RETRY_S)


async def watch(login: Login, world: World, stop: asyncio.Event, ready: asyncio.Event) -> None:
    """Watches until `stop`. `ready` is set when Kopf runs."""
    registry = kopf.OperatorRegistry()
    connection = _connection(login)

    @kopf.on.login(registry=registry)  # type: ignore[untyped-decorator]
    def log_in(**_: Any) -> kopf.ConnectionInfo:
        return connection()

    for kind in OURS:

        @kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=kind.plural)  # type: ignore[untyped-decorator]
        async def on_event(event: Any, **_: Any) -> None:
            raw = dict(event["object"])
            raw["metadata"] = dict(raw["metadata"])
            if event["type"] == "DELETED":
                world.remove(raw)
            else:
                world.put(raw)

    await kopf.operator(
        registry=registry,
        settings=settings(),
        standalone=True,
        clusterwide=True,
        stop_flag=stop,
        ready_flag=ready,
    )


def settings() -> kopf.OperatorSettings:
    """Kopf's settings; each is one of its measured traps."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.scanning.disabled = True
    chosen.watching.server_timeout = 300
    chosen.watching.client_timeout = 330
    chosen.watching.connect_timeout = 30
    chosen.watching.chunk_size = 500
    chosen.networking.request_timeout = 30
    chosen.queueing.idle_timeout = 1.0
    chosen.persistence.finalizer = names.FINALIZER + "-kopf"  # never written: nothing here needs it
    chosen.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=names.GROUP)
    chosen.persistence.diffbase_storage = _NoDifferences()
    return chosen


class _NoDifferences(kopf.DiffBaseStorage):  # type: ignore[misc]  # Kopf has no types here
    """Kopf copies every object at every event to tell what changed; nobody here asks it."""

    def build(self, *, body: Any, extra_fields: Any = None) -> dict[str, Any]:
        """Nothing."""
        del body, extra_fields
        return {}

    def fetch(self, *, body: Any) -> None:
        """Nothing."""
        del body

    def store(self, *, body: Any, patch: Any, essence: Any) -> None:
        """Nothing."""


def _connection(login: Login) -> Any:
    def now() -> kopf.ConnectionInfo:
        token = login.token_file.read_text().strip() if login.token_file is not None else login.token
        return kopf.ConnectionInfo(
            server=login.server,
            ca_data=login.authority or None,
            insecure=login.insecure,
            token=token or None,
            scheme="Bearer" if token else None,
            certificate_data=login.certificate or None,
            private_key_data=login.key or None,
            expiration=datetime.datetime.now(datetime.UTC) + TOKEN_AGE if login.token_file is not None else None,
        )

    return now
