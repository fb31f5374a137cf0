"""One 127.x.y.z address a pod, chosen so that every port of every pod is free there. Linux answers on all of 127/8
without set-up.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from twinpod.errors import EnvironmentFault, InputError

BLOCKS = tuple(f"127.74.{third}" for third in range(1, 65))  # a block a run; several runs may share the machine
FIRST_POD = 10  # below: the platform's own services
LAST_HOST = 254
ETCD_HOST = 1


def choose_block(ports_of_pods: Sequence[tuple[int, ...]], platform_ports: tuple[int, ...]) -> str:
    """The first block where everything can be bound; EnvironmentFault names the port that is taken in all of them."""
    if FIRST_POD + len(ports_of_pods) > LAST_HOST:
        raise InputError(
            f"{len(ports_of_pods)} pods, pools at their largest included, are more than the {LAST_HOST - FIRST_POD}"
            " that local mode has addresses for",
            mend="ask for fewer hybrid.replicas or RolloutPools, or run the job on Kubernetes",
        )
    taken: tuple[str, int] | None = None
    for block in BLOCKS:
        wanted = [(f"{block}.{ETCD_HOST}", port) for port in platform_ports]
        wanted += [(pod_address(block, index), port) for index, ports in enumerate(ports_of_pods) for port in ports]
        taken = next(((address, port) for address, port in wanted if not _free(address, port)), None)
        if taken is None:
            return block
    assert taken is not None
    raise EnvironmentFault(
        f"port {taken[1]} is taken at {taken[0]} and at every other address tried",
        where="local mode",
        mend=f"end the process that listens there (ss -ltnp 'sport = :{taken[1]}'), then run again",
    )


def pod_address(block: str, index: int) -> str:
    """Address of the pod with this running number."""
    return f"{block}.{FIRST_POD + index}"


def hosts_file(names_by_address: dict[str, tuple[str, ...]]) -> str:
    """Content of /etc/hosts in every container of the run."""
    lines = [f"127.0.0.1 localhost {socket.gethostname()}", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{address} {' '.join(names)}" for address, names in names_by_address.items()]
    return "\n".join(lines) + "\n"


def _free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise EnvironmentFault(f"cannot bind {address}:{port}: {error.strerror}", where="local mode") from error
    return True
