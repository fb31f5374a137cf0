"""One 127.x.y.z address a pod, chosen so that every port of every pod is free there. Linux answers on all of 127/8
without set-up.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator, Sequence

from twinpod.errors import EnvironmentFault, InputError

BLOCKS = tuple(f"127.74.{third}" for third in range(1, 65))  # a block a run; several runs may share the machine
FIRST_POD = 10  # below: the platform's own services
LAST_HOST = 254
ETCD_HOST = 1


@contextlib.contextmanager
def claimed_block(ports_of_pods: Sequence[tuple[int, ...]], platform_ports: tuple[int, ...]) -> Iterator[str]:
    """The first block that no other run has and where everything can be bound. No other run gets it while this lasts,
    even before anything listens there. EnvironmentFault names the port that is taken in all of them.
    """
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
        with socket.socket(socket.AF_UNIX) as claim:
            if not _bound(claim, f"\0twinpod-{block}"):  # an abstract name: it ends with the process, however that ends
                continue
            busy = next(((address, port) for address, port in wanted if not _free(address, port)), None)
            if busy is None:
                yield block
                return
            taken = busy
    if taken is None:
        raise EnvironmentFault(
            f"{len(BLOCKS)} runs have all addresses of this machine", where="local mode", mend="end one of them"
        )
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
        return _bound(probe, (address, port))


def _bound(claim: socket.socket, address: tuple[str, int] | str) -> bool:
    try:
        claim.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise EnvironmentFault(f"cannot bind {address!r}: {error.strerror}", where="local mode") from error
    return True
