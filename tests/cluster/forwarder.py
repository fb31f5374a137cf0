"""The way into a cluster: ports on 127.0.0.1 of the machine whose other ends are inside the control plane's namespace.

`python -m tests.cluster.forwarder NAMESPACE LISTEN=HOST:PORT ...`. The listening sockets are opened first, then the
process moves into the namespace, so each inner connection is made there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
import threading

CHUNK = 1 << 18
CLONE_NEWNET = 0x40000000


def main(namespace: str, *pairs: str) -> None:
    """Never returns."""
    listening = []
    for pair in pairs:
        port, target = pair.split("=")
        listening.append((socket.create_server(("127.0.0.1", int(port)), backlog=256, reuse_port=False), target))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(os.open(namespace, os.O_RDONLY), CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    threads = [threading.Thread(target=_accept, args=one) for one in listening]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _accept(server: socket.socket, target: str) -> None:
    host, port = target.split(":")
    while True:
        outer, _ = server.accept()
        try:
            inner = socket.create_connection((host, int(port)), timeout=5)
            inner.settimeout(None)
        except OSError:
            outer.close()
            continue
        for one in (outer, inner):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        both = (outer, inner), (inner, outer)
        for way in both:
            threading.Thread(target=_copy, args=way, daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """One direction, until its end, which is passed on; the sockets close when nobody refers to them any more."""
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    with contextlib.suppress(OSError):
        while count := source.recv_into(buffer):
            target.sendall(view[:count])
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
    with contextlib.suppress(OSError):
        source.shutdown(socket.SHUT_RD)


if __name__ == "__main__":
    main(*sys.argv[1:])
