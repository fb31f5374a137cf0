"""What nodes need of the machine beside the programs that are built: root, Debian packages, disk space."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.cluster.layout import NODES, TOP, ClusterFault, cache
from tests.cluster.node import CNI_FOLDER, promised_memory_mib
from tests.cluster.steps import Steps

# A file that tells whether a Debian package is there.
PACKAGES = {
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": f"{CNI_FOLDER}/bridge",
    "nftables": "/usr/sbin/nft",
    "docker-registry": "/usr/bin/docker-registry",
    "buildah": "/usr/bin/buildah",
    "iproute2": "/usr/sbin/ip",
    "util-linux": "/usr/bin/nsenter",
    "busybox-static": "/bin/busybox",
}
NEEDED_GIB, NEEDED_AGAIN_GIB = 18, 8  # the registry 3, a node 6, and room for a pull


def check(root: Path, more_gib: int = 0) -> None:
    """What a cluster with nodes needs and can be known at once. ClusterFault says what must be done by hand.

    `root`: the cluster's folder; `more_gib`: disk space that will be gone before it starts, by what must be built.
    """
    if os.geteuid() != 0:
        raise ClusterFault(
            "nodes need root (namespaces, mounts, control groups); run it as root, or --control-plane-only"
        )
    missing = _missing()
    if missing and shutil.which("apt-get") is None:
        raise ClusterFault(f"needs {', '.join(missing)}, and this machine has no apt-get; install them by hand")
    promised_memory_mib(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20, len(NODES))
    check_space(root, more_gib)


def prepare(steps: Steps) -> None:
    """Install what is missing."""
    if missing := _missing():
        steps.run(f"Debian packages ({', '.join(missing)})", [str(TOP / "tools/debian"), *missing])


def check_space(root: Path, more_gib: int = 0) -> None:
    """Images are kept three times (pushed, unpacked on two nodes): say what is missing before, not in the middle."""
    unpacked = any((root / name / "containerd").exists() for name in NODES)
    needed = more_gib + (NEEDED_AGAIN_GIB if unpacked else NEEDED_GIB)
    cache().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache()).free / 2**30
    if free < needed:
        missing = f"needs {needed} GiB free in {cache()} for programs and images, found {free:.1f}"
        raise ClusterFault(f"{missing}; free {needed - free:.1f} GiB or set TWINPOD_CACHE to a folder on a larger disk")


def _missing() -> list[str]:
    """Debian packages that are not there."""
    return [name for name, file in PACKAGES.items() if not Path(file).exists()]
