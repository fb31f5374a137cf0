"""A tiny process that answers like an SGLang server, as far as a half can see: `python -m twinpod.testing.fake_engine
ARGS-JSON`.

`hold` in its arguments makes it stop at a point for ever ("start": never healthy; "load": never loaded; "release"),
so that a test may kill it there. `refuse` names a path that it answers with an error. `lie` is a weight version that
it claims instead of the loaded one.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeEngine(ThreadingHTTPServer):
    """The server; `version` is what it says that it serves."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", int(arguments["port"])), _Handler)
        self.arguments, self.version, self.asleep = arguments, "default", False


class _Handler(BaseHTTPRequestHandler):
    server: FakeEngine

    def do_GET(self) -> None:
        self._hold("start")
        info = {"weight_version": self.server.version, "tp_size": self.server.arguments.get("tp_size", 1)}
        self._answer(200, info)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        arguments = self.server.arguments
        if self.headers.get("Authorization") != f"Bearer {arguments['api_key']}":
            self._answer(401, {"error": "Unauthorized"})
        elif self.path == arguments.get("refuse"):
            self._answer(500, {"success": False, "message": "refused, as the test wants"})
        elif self.path == "/update_weights_from_tensor":
            self._hold("load")
            self.server.version = arguments.get("lie", body["weight_version"])
            self._answer(200, {"success": True, "message": ""})
        elif self.path in ("/release_memory_occupation", "/resume_memory_occupation"):
            self._hold("release")
            self.server.asleep = self.path.startswith("/release")
            self._answer(200, {})
        else:
            self._answer(200, {"success": True, "message": ""})

    def _hold(self, where: str) -> None:
        if self.server.arguments.get("hold") == where:
            threading.Event().wait()

    def _answer(self, code: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
        """Nothing: its log is for last words."""


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    if words := given.get("die"):
        sys.exit(words)
    FakeEngine(given).serve_forever()
