"""A running launcher takes orders: a Unix socket in the run folder, one JSON line in, one JSON line out.

    {"pool": "helpers", "replicas": 2}  →  {"was": 1, "replicas": 2}  or  {"error": "...", "mend": "..."}

The socket is made and found through a handle of its folder, because a socket's path must be short and a run folder's
need not be.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from twinpod.errors import EnvironmentFault, InputError, TwinpodError
from twinpod.local.pools import Pool

NAME = "control.sock"
TIMEOUT_S = 10.0


class Control:
    """The launcher's side. Life: `start`, orders, `stop`. `admit` raises when a pool cannot get so many pods now."""

    def __init__(self, folder: Path, pools: Mapping[str, Pool], admit: Callable[[Pool, int], None]) -> None:
        self._folder, self._pools, self._admit = folder, pools, admit
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """From here on orders are taken, of the user who runs the job alone."""
        (self._folder / NAME).unlink(missing_ok=True)
        with _handle(self._folder) as handle:
            old = os.umask(0o177)
            try:
                # Under its name only when it listens: who finds it may connect
                made = f"/proc/self/fd/{handle}/{NAME}.new"
                self._server = await asyncio.start_unix_server(self._take, path=made)
                os.rename(made, f"/proc/self/fd/{handle}/{NAME}")
            finally:
                os.umask(old)

    async def stop(self) -> None:
        """No more orders."""
        if self._server is not None:
            self._server.close()
            (self._folder / NAME).unlink(missing_ok=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(TIMEOUT_S):
                line = await reader.readline()
                try:
                    answer = self._obey(line)
                except TwinpodError as error:
                    answer = {"error": error.what, "where": error.where, "mend": error.mend}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        writer.close()

    def _obey(self, line: bytes) -> dict[str, object]:
        try:
            order = json.loads(line)
            name, replicas = str(order["pool"]), int(order["replicas"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError("an order that is not understood", where=NAME) from error
        if name not in self._pools:
            there = ", ".join(self._pools) or "none; give the run a file that holds a RolloutPool"
            raise InputError(f"the run has no pool {name!r}", mend=f"its pools are: {there}")
        pool = self._pools[name]
        was = pool.wanted
        self._admit(pool, replicas)
        pool.scale(replicas)
        return {"was": was, "replicas": replicas}


def scale(folder: Path, pool: str, replicas: int) -> int:
    """Tell the run in `folder` how many pods a pool is to have; returns how many it had. InputError if it refuses."""
    with _handle(folder) as handle, socket.socket(socket.AF_UNIX) as line:
        line.settimeout(TIMEOUT_S)
        try:
            line.connect(f"/proc/self/fd/{handle}/{NAME}")
            line.sendall(json.dumps({"pool": pool, "replicas": replicas}).encode() + b"\n")
            answer = json.loads(line.makefile().readline() or "{}")
        except (OSError, ValueError) as error:
            raise EnvironmentFault(
                f"the run does not answer: {error}", where=str(folder), mend="is it still starting? try again"
            ) from error
    if "was" in answer:
        return int(answer["was"])
    raise InputError(
        answer.get("error", "the run did not say why it refused"),
        where=answer.get("where", ""),
        mend=answer.get("mend", ""),
    )


@contextlib.contextmanager
def _handle(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield handle
    finally:
        os.close(handle)
