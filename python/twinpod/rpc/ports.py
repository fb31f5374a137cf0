"""Ports for servers that are started with a number, because they cannot tell which one they got."""

from __future__ import annotations

import random
import socket

from twinpod.errors import EnvironmentFault

AMONG = range(22_000, 30_000)  # below those that the kernel gives to connections: nobody gets it before it is bound
TRIES = 100


def free_port(host: str = "127.0.0.1") -> int:
    """A port of `host` that nobody listens on just now. EnvironmentFault when none was found."""
    return free_ports(1, host)[0]


def free_ports(count: int, host: str = "127.0.0.1", among: range = AMONG) -> tuple[int, ...]:
    """Different ones."""
    found: list[int] = []
    for port in random.sample(among, min(TRIES, len(among))):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return tuple(found)
    tried = f"among {TRIES} of {among.start} to {among.stop - 1}"
    raise EnvironmentFault(f"{len(found)} of {count} free ports found {tried}", where=host)
