"""Where a cluster of a name keeps its things: folder, ports, addresses, all derived from its name and number.

Promises: two clusters of different names share nothing but the built programs, and a name keeps its ports for as long
as its folder exists. A number is chosen once (the name's hash, or the next whose ports are free) and written down.
"""

from __future__ import annotations

import json
import os
import re
import socket
import zlib
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

TOP = Path(__file__).resolve().parents[2]
DEFAULT_NAME = "twinpod"
NUMBERS = 40
FIRST_PORT, PORTS_EACH = 20000, 20  # below the ports that the kernel hands out itself
DOMAIN = "cluster.local"
LONGEST_ROOT = 60  # sockets under it must stay below the kernel's 108 characters

Mode = Literal["full", "control-plane-only"]
PortName = Literal["api", "etcd", "etcd_peer", "controllers", "scheduler", "registry"]
PORTS: tuple[PortName, ...] = ("api", "etcd", "etcd_peer", "controllers", "scheduler", "registry")
NODES = ("node-1", "node-2")


class ClusterFault(Exception):
    """The cluster cannot do what was asked. The text says what to do."""


def chosen_name() -> str:
    """The cluster that a person means: TWINPOD_CLUSTER, or the usual one."""
    return os.environ.get("TWINPOD_CLUSTER") or DEFAULT_NAME


def cache() -> Path:
    """$TWINPOD_CACHE, or its default."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("TWINPOD_CACHE") or Path(base) / "twinpod")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One cluster. `number`: 0 to 39, decides ports and address ranges."""

    name: str
    root: Path
    number: int
    mode: Mode

    def port(self, of: PortName) -> int:
        """Port of a server of the control plane: on 127.0.0.1 outside, on `control_address` inside."""
        return FIRST_PORT + self.number * PORTS_EACH + PORTS.index(of)

    @property
    def outside(self) -> tuple[PortName, ...]:
        """Servers with a port on this machine; those of a cluster with nodes are in a network of their own but two."""
        return ("api", "registry") if self.full else tuple(name for name in PORTS if name != "registry")

    @property
    def full(self) -> bool:
        """Whether it has nodes."""
        return self.mode == "full"

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of its nodes."""
        return NODES if self.full else ()

    @property
    def prefix(self) -> str:
        """The first two numbers of every address in it. Its networks are its own: only the two of them must differ."""
        return f"10.{100 + self.number}"

    @property
    def pod_range(self) -> str:
        """All pods; node n has x.n.0/24."""
        return f"{self.prefix}.0.0/18"

    @property
    def service_range(self) -> str:
        """Cluster addresses of Services."""
        return f"{self.prefix}.128.0/20"

    @property
    def dns_address(self) -> str:
        """Service address of CoreDNS."""
        return f"{self.prefix}.128.10"

    @property
    def control_address(self) -> str:
        """The control plane's end of the bridge: API server, registry, CoreDNS."""
        return f"{self.prefix}.255.1"

    def node_address(self, node: str) -> str:
        """A node's end of the bridge."""
        return f"{self.prefix}.255.{10 + self.nodes.index(node) + 1}"

    def node_pods(self, node: str) -> str:
        """The node's own range of pod addresses, without the mask."""
        return f"{self.prefix}.{self.nodes.index(node) + 1}"

    @property
    def server(self) -> str:
        """URL of the API server from this machine."""
        return f"https://127.0.0.1:{self.port('api')}"

    @property
    def registry(self) -> str:
        """The one name of the registry, for pushes from this machine and for pulls by nodes."""
        return f"127.0.0.1:{self.port('registry')}"

    @property
    def cgroup(self) -> str:
        """Parent of the control groups of all its pods, in every hierarchy."""
        return f"/twinpod-{self.name}"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def held(self) -> Path:
        """A file here named like a program keeps that program stopped."""
        return self.root / "held"

    @property
    def pids(self) -> Path:
        """A file for each running program with its process number."""
        return self.root / "pids"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.root / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.log"

    @property
    def volumes(self) -> Path:
        """The folder that the StorageClass shares between nodes."""
        return self.root / "volumes"

    @property
    def marker(self) -> str:
        """In the environment of every process that the supervisor starts, so that leftovers are found."""
        return f"TWINPOD_CLUSTER_ROOT={self.root}"

    def write(self) -> None:
        """Write it down, so that the next `read_layout` of the name finds it."""
        self.root.mkdir(parents=True, exist_ok=True)
        part = self.root / ".layout.part"
        part.write_text(json.dumps({**asdict(self), "root": str(self.root)}))
        part.rename(self.root / "layout.json")


def root_of(name: str) -> Path:
    """The folder of the cluster; ClusterFault when name or path cannot be used."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,14}[a-z0-9])?", name):
        raise ClusterFault(f"a cluster's name has at most 16 of a-z, 0-9 and '-', got {name!r}")
    root = cache() / "cluster" / name
    if len(str(root)) > LONGEST_ROOT:
        raise ClusterFault(f"{root} has more than {LONGEST_ROOT} characters; set TWINPOD_CACHE to a shorter path")
    return root


def read_layout(name: str) -> Layout | None:
    """What was written down for the name, if anything."""
    try:
        raw = json.loads((root_of(name) / "layout.json").read_text())
    except FileNotFoundError:
        return None
    return Layout(name=raw["name"], root=Path(raw["root"]), number=int(raw["number"]), mode=raw["mode"])


def choose_layout(name: str, mode: Mode) -> Layout:
    """The one written down if there is one, in the wanted mode; else a new one whose ports are free."""
    known = read_layout(name)
    if known is not None:
        return Layout(name=name, root=known.root, number=known.number, mode=mode)
    root, first = root_of(name), zlib.crc32(name.encode()) % NUMBERS
    taken = {other.number for other in all_layouts()}
    for step in range(NUMBERS):
        layout = Layout(name=name, root=root, number=(first + step) % NUMBERS, mode=mode)
        if layout.number not in taken and not taken_ports(layout, PORTS):
            return layout
    raise ClusterFault(
        f"no {PORTS_EACH} free ports for a cluster between {FIRST_PORT} and 20800; stop one of {sorted(taken)}"
    )


def all_layouts() -> list[Layout]:
    """Every cluster with a folder."""
    folder = cache() / "cluster"
    found = [read_layout(path.parent.name) for path in sorted(folder.glob("*/layout.json"))]
    return [layout for layout in found if layout is not None]


def need_ports(layout: Layout) -> None:
    """ClusterFault names a port of the cluster that another program has. To be asked while the cluster is down."""
    if taken := taken_ports(layout, layout.outside):
        port = layout.port(taken[0])
        raise ClusterFault(
            f"port {port} of 127.0.0.1 ({taken[0]}) belongs to another program: `ss -ltnp sport = :{port}` names it; "
            f"end it, or give the cluster another name by TWINPOD_CLUSTER"
        )


def taken_ports(layout: Layout, names: tuple[PortName, ...]) -> list[PortName]:
    """Those that cannot be listened on."""
    taken = []
    with ExitStack() as stack:
        for name in names:
            probe = stack.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", layout.port(name)))
            except OSError:
                taken.append(name)
    return taken
