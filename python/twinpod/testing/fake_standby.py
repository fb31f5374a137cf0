"""A standby without SGLang: the same pipe protocol, its engines are `fake_engine` processes. `python -m
twinpod.testing.fake_standby [READY-JSON]`, the fields that its line `ready` has besides.

It shares no code with the real one, on purpose: each is held to the protocol by its own tests.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from typing import Any

PR_SET_PDEATHSIG = 1


def say(**message: Any) -> None:
    """One line to the half."""
    print(json.dumps(message), flush=True)


def die_with_parent() -> None:
    """Between fork and exec of an engine; this process has one thread."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def obey(message: dict[str, Any], engines: dict[int, subprocess.Popen[bytes]]) -> None:
    """Execute one line."""
    number = message["id"]
    match message["op"]:
        case "start":
            with open(message["log"], "ab") as log:
                told = {**message["args"], "start": "spawn" if message.get("spawn") else "fork"}
                command = [sys.executable, "-m", "twinpod.testing.fake_engine", json.dumps(told)]
                engine = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=die_with_parent,  # noqa: PLW1509  # one thread
                )
            engines[engine.pid] = engine
            say(id=number, pid=engine.pid)
        case "stop":
            began = time.monotonic()
            if (stopped := engines.pop(message["pid"], None)) is not None:
                stopped.kill()
                stopped.wait()
            say(id=number, pid=message["pid"], gone=True, seconds=time.monotonic() - began)
        case "payload":
            note = {"manifest": message["manifest"], "digest": message["digest"]}
            say(id=number, payload=base64.b64encode(json.dumps(note).encode()).decode())
        case other:
            say(id=number, error=f"unknown op {other}")


def main() -> None:
    """Until stdin ends or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    engines: dict[int, subprocess.Popen[bytes]] = {}
    buffer = b""
    more = json.loads(sys.argv[1]) if sys.argv[1:] else {}
    say(**{"event": "ready", "imports_s": 0.0, "pid": os.getpid(), "threads": 1, **more})
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(reading, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                data = os.read(key.fd, 65536)
                if key.fd != 0:
                    continue
                if not data:
                    return
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    obey(json.loads(line), engines)
            for pid, engine in list(engines.items()):
                if engine.poll() is not None:
                    del engines[pid]
                    say(event="exit", pid=pid, status=engine.returncode)


if __name__ == "__main__":
    main()
