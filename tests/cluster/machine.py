"""What nodes need of the machine beside the programs that are built: root, Debian packages, disk space."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.cluster.layout import TOP, ClusterFault, Layout, cache
from tests.cluster.node import CNI_FOLDER
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
NEEDED_GIB, NEEDED_AGAIN_GIB = 25, 8


def prepare(steps: Steps) -> None:
    """Install what is missing. ClusterFault says what must be done by hand."""
    if os.geteuid() != 0:
        raise ClusterFault(
            "nodes need root (namespaces, mounts, control groups); run it as root, or --control-plane-only"
        )
    missing = [name for name, file in PACKAGES.items() if not Path(file).exists()]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise ClusterFault(f"needs {', '.join(missing)}, and this machine has no apt-get; install them by hand")
    steps.run(f"Debian packages ({', '.join(missing)})", [str(TOP / "tools/debian"), *missing])


def check_space(layout: Layout) -> None:
    """Images are kept three times (pushed, unpacked on two nodes): say what is missing before, not in the middle."""
    unpacked = any((layout.root / name / "containerd").exists() for name in layout.nodes)
    needed = NEEDED_AGAIN_GIB if unpacked else NEEDED_GIB
    free = shutil.disk_usage(cache()).free / 2**30
    if free < needed:
        missing = f"needs {needed} GiB free in {cache()} for images, found {free:.1f}"
        raise ClusterFault(f"{missing}; free {needed - free:.1f} GiB or set TWINPOD_CACHE to a folder on a larger disk")
