"""`/healthz` over plain HTTP for the kubelet, which has no certificate of the job; it tells up or not up and nothing
else.

It has a thread of its own on purpose: a probe must be answered within a second even while the event loop starts a
child or reads a long manifest. So that a loop that is stuck for good does not look healthy, the loop sets a beat and
the thread answers 503 once the last one is too old.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from twinpod.errors import EnvironmentFault

BEAT_S = 1.0
STUCK_S = 15.0


class Health:
    """Life: `start` inside the event loop, `stop` at the end. `ready` is set by the owner when the half serves."""

    def __init__(self, host: str, port: int) -> None:
        self.ready = False
        self.beat = time.monotonic()
        self._task: asyncio.Task[None] | None = None
        health = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 5

            def do_GET(self) -> None:
                code, words = health.answer() if self.path.split("?")[0] == "/healthz" else (404, "only /healthz")
                body = (words + "\n").encode()
                self.send_response(code)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(body)))
                with contextlib.suppress(ConnectionError):  # the kubelet's patience was over first
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
                """A probe every few seconds is no news."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise EnvironmentFault(
                f"the health port cannot be bound: {error.strerror}",
                where=f"{host}:{port}",
                mend="stop the process that listens there (`ss -ltnp` shows it)",
            ) from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])

    def answer(self) -> tuple[int, str]:
        """Status code and words."""
        age = time.monotonic() - self.beat
        if age > STUCK_S:
            return 503, f"the event loop has been stuck for {age:.0f} s"
        return (200, "ok") if self.ready else (503, "starting")

    def start(self) -> None:
        """Begin to answer."""
        threading.Thread(target=self._server.serve_forever, args=(0.2,), name="health", daemon=True).start()
        self._task = asyncio.get_running_loop().create_task(self._beats())

    def stop(self) -> None:
        """Answer no more."""
        if self._task:
            self._task.cancel()
        self._server.shutdown()
        self._server.server_close()

    async def _beats(self) -> None:
        while True:
            self.beat = time.monotonic()
            await asyncio.sleep(BEAT_S)
