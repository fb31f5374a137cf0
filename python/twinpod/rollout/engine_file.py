"""Word of the engine beside the worker: a small file that the inference half writes while its engine serves, and
removes otherwise.

    /run/twinpod/engine.json    {"urls": ["http://127.0.0.1:41233"], "api_key": "...", "version": 7}
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from twinpod.errors import ProtocolError
from twinpod.records import codec
from twinpod.rollout.ports import EngineEndpoint, EnginePort

__all__ = ["EngineFile"]

log = logging.getLogger(__name__)


class EngineFile:
    """An EngineSource that looks at the file every `every_s` seconds; a look at an unchanged file is one `stat`."""

    def __init__(self, path: Path, connect: Callable[[EngineEndpoint], EnginePort], *, every_s: float = 0.02) -> None:
        self._path, self._connect, self._every = path, connect, every_s
        self._stamp: tuple[int, int] | None = None
        self._serving: EngineEndpoint | None = None

    def current(self) -> EngineEndpoint | None:
        """What the file says now; None without a file."""
        try:
            seen = self._path.stat()
            stamp = (seen.st_mtime_ns, seen.st_ino)
            if stamp == self._stamp:
                return self._serving
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            self._stamp = self._serving = None
            return None
        try:
            self._serving = codec.loads(EngineEndpoint, text)
        except ProtocolError as error:
            log.warning("%s: %s", self._path, error)  # the half writes it atomically, so this is no half-written file
            self._serving = None
        self._stamp = stamp
        return self._serving

    async def changed(self, old: EngineEndpoint | None) -> EngineEndpoint | None:
        """Wait until the file says something else than `old`."""
        while (serving := self.current()) == old:  # noqa: ASYNC110  # nothing to wait on
            await asyncio.sleep(self._every)
        return serving

    def connect(self, serving: EngineEndpoint) -> EnginePort:
        """A port to that engine."""
        return self._connect(serving)
