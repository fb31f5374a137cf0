"""Ports for servers that are told theirs."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from twinpod.errors import EnvironmentFault
from twinpod.rpc import ports


def test_a_port_that_somebody_listens_on_is_not_given() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        with pytest.raises(EnvironmentFault, match="0 of 1 free ports"):
            ports.free_ports(1, among=range(taken, taken + 1))


def test_several_ports_differ() -> None:
    assert len(set(ports.free_ports(50))) == 50


def test_no_connection_is_given_such_a_port_meanwhile() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if first != 32_768:
        pytest.skip("this machine gives other ports to connections than Linux does by itself")
    assert first >= ports.AMONG.stop
