"""The namespaces of a cluster: one for the control plane, one a node, held open by the supervisor and by nobody else.

Nothing is named in /run/netns and nothing is mounted on the machine: when the supervisor and the processes inside are
gone, the kernel takes namespaces, interfaces, routes, packet filters and mounts with them. A node's mount namespace
hides from kubelet and containerd what two of them on one machine would share: /run, /var/log, /var/lib/{cni,kubelet},
the kernel settings that a kubelet writes, and the unified cgroup hierarchy of a machine that still has the old ones.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.layout import ClusterFault, Layout

OPEN_S = 5.0
BRIDGE = "control"
PRIVATE_FOLDERS = ("/var/lib/cni", "/var/lib/kubelet")
KERNEL_SETTINGS = {  # a kubelet writes these for the whole machine unless they have these values
    "/proc/sys/vm/overcommit_memory": 1,
    "/proc/sys/vm/panic_on_oom": 0,
    "/proc/sys/kernel/panic": 10,
    "/proc/sys/kernel/panic_on_oops": 1,
    "/proc/sys/kernel/keys/root_maxkeys": 1000000,
    "/proc/sys/kernel/keys/root_maxbytes": 25000000,
}
CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "hugetlb")  # those without which a kubelet takes no parent group


@dataclass(frozen=True, slots=True)
class Space:
    """Open namespaces. `files`: kind (`net`, `mount`) to a path that opens it for as long as this process lives."""

    files: dict[str, str]

    @property
    def enter(self) -> Sequence[str]:
        """Arguments of nsenter."""
        return [f"--{kind}={path}" for kind, path in self.files.items()]

    def run(self, script: str) -> None:
        """Run shell commands inside; ClusterFault with what they said when one fails."""
        command = ["nsenter", *self.enter, "--", "sh", "-ec", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ClusterFault(f"setting up a namespace failed: {done.stderr.strip()}; the commands were:\n{script}")


def make_spaces(layout: Layout) -> dict[str, Space]:
    """All namespaces of the cluster, wired to each other. Needs root."""
    control = _open("net")
    nodes = {node: _open("net", "mount") for node in layout.nodes}
    control.run(_control_script(layout, nodes))
    for node, space in nodes.items():
        make_cgroups(CGROUPS, (layout.cgroup.lstrip("/"), node))
        space.run(_network_script(layout, node))
        space.run(_mount_script(layout, node))
    return {"control": control, **nodes}


def _open(*kinds: str) -> Space:
    """New namespaces of these kinds. Made by a process that ends as soon as they are held open here."""
    options = [f"--{kind}" for kind in kinds] + (["--propagation", "private"] if "mount" in kinds else [])
    maker = subprocess.Popen(["unshare", *options, "--", "sleep", "60"])
    try:
        files = {"net": "net", "mount": "mnt"}
        deadline = time.monotonic() + OPEN_S
        while Path(f"/proc/{maker.pid}/comm").read_text().strip() != "sleep":
            if maker.poll() is not None or time.monotonic() > deadline:
                raise ClusterFault("cannot make namespaces; the embedded cluster needs root (CAP_SYS_ADMIN)")
            time.sleep(0.005)
        held = {kind: os.open(f"/proc/{maker.pid}/ns/{files[kind]}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds}
        return Space({kind: f"/proc/{os.getpid()}/fd/{number}" for kind, number in held.items()})
    finally:
        maker.kill()
        maker.wait()


def _control_script(layout: Layout, nodes: dict[str, Space]) -> str:
    lines = [
        "ip link set lo up",
        f"ip link add {BRIDGE} type bridge",
        f"ip address add {layout.control_address}/24 dev {BRIDGE}",
        f"ip link set {BRIDGE} up",
    ]
    for node, space in nodes.items():
        lines += [
            f"ip link add {node} type veth peer name eth0 netns {space.files['net']}",
            f"ip link set {node} master {BRIDGE} up",
            f"ip route add {layout.node_pods(node)}.0/24 via {layout.node_address(node)}",
        ]
    return "\n".join(lines)


def _network_script(layout: Layout, node: str) -> str:
    lines = [
        "ip link set lo up",
        f"ip address add {layout.node_address(node)}/24 dev eth0",
        "ip link set eth0 up",
        f"ip route add default via {layout.control_address}",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
    ]
    others = [other for other in layout.nodes if other != node]
    lines += [f"ip route add {layout.node_pods(other)}.0/24 via {layout.node_address(other)}" for other in others]
    return "\n".join(lines)


def _mount_script(layout: Layout, node: str) -> str:
    folder = layout.root / node
    settings = folder / "kernel-settings"
    settings.mkdir(parents=True, exist_ok=True)
    lines = [
        "umount /sys/fs/cgroup/unified 2>/dev/null || true",
        *(
            f"mkdir -p {path}\nmount -t tmpfs -o mode=0755 tmpfs {path}"
            for path in (*PRIVATE_FOLDERS, "/run", "/var/log")
        ),
    ]
    for path, value in KERNEL_SETTINGS.items():
        file = settings / path.rsplit("/", 1)[1]
        file.write_text(f"{value}\n")
        lines.append(f"mount --bind {file} {path}")
    return "\n".join(lines)


def make_cgroups(machine: Path, parts: Sequence[str]) -> None:
    """A node's parent group below `machine`, in its one hierarchy (cgroup v2) or in each of the old ones."""
    if (machine / "cgroup.controllers").exists():
        _make_unified(machine, parts)
        return
    for top in machine.iterdir():
        if top.name != "unified" and top.is_dir() and not top.is_symlink():
            _make_old(top, parts)


def controllers_on(present: str) -> str:
    """What a group's `cgroup.subtree_control` is told, by what `cgroup.controllers` says is present. Pure."""
    return " ".join(f"+{name}" for name in CONTROLLERS if name in present.split())


def _make_unified(top: Path, parts: Sequence[str]) -> None:
    """A group has the controllers that every group above it turns on for those below."""
    wanted = controllers_on((top / "cgroup.controllers").read_text())
    folder = top
    for part in parts:
        try:
            (folder / "cgroup.subtree_control").write_text(wanted)
        except OSError as error:
            mend = "a container needs the machine's control groups (--privileged --cgroupns=host)"
            raise ClusterFault(
                f'{folder}/cgroup.subtree_control refuses "{wanted}": {error.strerror}; {mend}'
            ) from None
        folder = folder / part
        folder.mkdir(exist_ok=True)


def _make_old(top: Path, parts: Sequence[str]) -> None:
    """In `cpuset` each level is filled in, else nothing can join it."""
    folder = top
    for part in parts:
        above, folder = folder, folder / part
        folder.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (folder / name).exists() and not (folder / name).read_text().strip():
                (folder / name).write_text((above / name).read_text())
