"""Nodes without kubelets for `make bench-operator`: pods are bound at once and said to be running, and deleted ones go.

A process of its own, `python -m tests.bench.fake_node KUBECONFIG`, so that its time is nobody else's. It ends with
SIGTERM. The cluster's scheduler is stopped meanwhile: it would wait for volumes that nobody provides here.
"""

from __future__ import annotations

import asyncio
import datetime
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from tests.bench.reach import Reach, reach_of

NODES = ("fake-0", "fake-1")
BEAT_S = 10.0
AT_ONCE = 8


class FakeNodes:
    """Life: `run` until cancelled."""

    def __init__(self, session: aiohttp.ClientSession, reach: Reach) -> None:
        self._session, self._reach = session, reach
        self._work: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self._done: set[tuple[str, str]] = set()  # act, uid

    async def run(self) -> None:
        """Nodes, their heartbeat, the pods."""
        for name in NODES:
            await self._send("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat())
            group.create_task(self._watch())
            for _ in range(AT_ONCE):
                group.create_task(self._worker())

    async def _beat(self) -> None:
        while True:
            for name in NODES:
                ready = {"type": "Ready", "status": "True", "reason": "Fake", "lastHeartbeatTime": _now()}
                body = {"status": {"conditions": [ready], "capacity": {"pods": "100000", "cpu": "100k"}}}
                await self._send("PATCH", f"/api/v1/nodes/{name}/status", body)
            await asyncio.sleep(BEAT_S)

    async def _watch(self) -> None:
        async for kind, pod in self._reach.objects(self._session, "/api/v1/pods"):
            metadata, spec = pod["metadata"], pod["spec"]
            if kind == "DELETED" or spec.get("schedulingGates"):
                continue
            if "deletionTimestamp" in metadata:
                self._once("remove", pod)
            elif not spec.get("nodeName"):
                self._once("bind", pod)

    def _once(self, act: str, pod: dict[str, Any]) -> None:
        key = (act, pod["metadata"]["uid"])
        if key not in self._done:
            self._done.add(key)
            self._work.put_nowait((act, pod))

    async def _worker(self) -> None:
        while True:
            act, pod = await self._work.get()
            metadata = pod["metadata"]
            path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
            if act == "remove":
                await self._send("DELETE", path, {"gracePeriodSeconds": 0})
                continue
            target = {"apiVersion": "v1", "kind": "Node", "name": NODES[hash(metadata["uid"]) % len(NODES)]}
            body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": metadata["name"]}, "target": target}
            await self._send("POST", f"{path}/binding", body)
            conditions = [{"type": name, "status": "True"} for name in ("Ready", "ContainersReady", "Initialized")]
            status = {"phase": "Running", "conditions": conditions, "startTime": _now()}
            await self._send("PATCH", f"{path}/status", {"status": status})

    async def _send(self, method: str, path: str, body: dict[str, Any]) -> None:
        """A pod that is gone, or a node that is there, is no error."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        async with self._session.request(
            method, self._reach.server + path, data=orjson.dumps(body), headers={"Content-Type": kind}
        ) as answer:
            if answer.status >= 400 and answer.status not in (404, 409):
                print(f"{method} {path}: {answer.status} {await answer.text()}", file=sys.stderr)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def _main(kubeconfig: Path) -> None:
    reach = reach_of(kubeconfig)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with reach.session() as session:
        await FakeNodes(session, reach).run()


if __name__ == "__main__":
    try:
        asyncio.run(_main(Path(sys.argv[1])))
    except (asyncio.CancelledError, ssl.SSLError):
        sys.exit(0)
