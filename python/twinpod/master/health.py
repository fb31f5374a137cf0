"""`/healthz` and `/metrics` over plain HTTP, for the kubelet and Prometheus, which have no certificate of the job.

A thread of its own answers, so that a probe does not wait for a long database write; the event loop sets a beat, and
a loop that is stuck for good is told apart from a busy one by its age.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from twinpod.errors import EnvironmentFault
from twinpod.telemetry.prometheus import CONTENT_TYPE

BEAT_S = 1.0
STUCK_S = 60.0


class Health:
    """Life: `start` inside the event loop, `stop` at the end. `metrics` is called in the thread of a request."""

    def __init__(self, host: str, port: int, metrics: Callable[[], str]) -> None:
        self._beat = time.monotonic()
        self._metrics = metrics
        self._task: asyncio.Task[None] | None = None
        health = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 5

            def do_GET(self) -> None:
                code, kind, body = health.answer(self.path.split("?")[0])
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                with contextlib.suppress(ConnectionError):  # the kubelet's patience was over first
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name above
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

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status code, content type, body."""
        plain = "text/plain; charset=utf-8"
        if path == "/metrics":
            return 200, CONTENT_TYPE, self._metrics().encode()
        if path != "/healthz":
            return 404, plain, b"only /healthz and /metrics\n"
        age = time.monotonic() - self._beat
        return (
            (503, plain, f"the event loop has been stuck for {age:.0f} s\n".encode())
            if age > STUCK_S
            else (200, plain, b"ok\n")
        )

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
            self._beat = time.monotonic()
            await asyncio.sleep(BEAT_S)
