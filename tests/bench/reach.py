"""A bench's way to an API server: JSON over aiohttp, as the administrator of a kubeconfig."""

from __future__ import annotations

import asyncio
import base64
import ssl
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Where the server is, and who asks."""

    server: str
    context: ssl.SSLContext

    def session(self) -> aiohttp.ClientSession:
        """`async with`."""
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self.context, limit=64))

    async def objects(self, session: aiohttp.ClientSession, path: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """(ADDED, MODIFIED or DELETED, object) of what is there and of what comes, for ever."""
        version = ""
        while True:
            if not version:
                async with session.get(self.server + path) as answer:
                    listed = orjson.loads(await answer.read())
                for found in listed.get("items") or ():
                    yield "ADDED", found
                version = listed["metadata"]["resourceVersion"]
            query = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true"}
            unlimited = aiohttp.ClientTimeout(total=None)
            async with session.get(self.server + path, params=query, timeout=unlimited, read_bufsize=1 << 24) as answer:
                async for line in answer.content:
                    event = orjson.loads(line)
                    if event["type"] == "ERROR":
                        version = ""
                        break
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        yield event["type"], event["object"]
            await asyncio.sleep(0)


def reach_of(kubeconfig: Path) -> Reach:
    """From the kubeconfig of the embedded cluster: one cluster, one user."""
    document = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
    cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
    context = ssl.create_default_context()
    with tempfile.TemporaryDirectory() as folder:
        for name, held in (("ca", cluster), ("crt", user), ("key", user)):
            data = {"ca": "certificate-authority", "crt": "client-certificate", "key": "client-key"}[name]
            text = base64.b64decode(held[f"{data}-data"]) if f"{data}-data" in held else Path(held[data]).read_bytes()
            (Path(folder) / name).write_bytes(text)
        context.load_verify_locations(Path(folder) / "ca")
        context.load_cert_chain(Path(folder) / "crt", Path(folder) / "key")
    return Reach(server=cluster["server"], context=context)
