"""`twinpod doctor`: what local mode needs of a machine, what this one lacks, and the command that mends it.

What a Kubernetes cluster on this machine would need besides is told, too, but lacking it is no fault.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from twinpod.cli import doctor_cluster
from twinpod.cli.finding import GIB, Finding, memory_of

NEEDED_MEMORY = 8 * GIB
NEEDED_DISK = 2 * GIB
PACKAGES = ("torch", "megatron.core", "sglang", "transformers", "grpc", "aetcd", "tokenizers", "reasoning_gym")


def execute(arguments: argparse.Namespace) -> int:
    """0 when nothing is lacking for local mode, else 1."""
    local, cluster = [look() for look in LOOKS], list(doctor_cluster.findings())
    if arguments.json:
        told = [asdict(one) | {"needed_for": "local mode"} for one in local]
        told += [asdict(one) | {"needed_for": "a cluster on this machine"} for one in cluster]
        print(json.dumps(told, indent=2))
    else:
        print("\n".join(lines(local, "LACK")))
        print("for a Kubernetes cluster on this machine, as `make demo` makes one:")
        print("\n".join(lines(cluster, "WARN")))
    return 0 if all(finding.good for finding in local) else 1


def lines(findings: Iterable[Finding], bad: str) -> Iterator[str]:
    """What a person reads; `bad` marks what is lacking. Pure."""
    for finding in findings:
        yield f"{'ok  ' if finding.good else bad} {finding.name:<14} {finding.what}"
        if not finding.good:
            yield f"     {'':<14} mend: {finding.mend}"


def python() -> Finding:
    """The interpreter and the packages, found without importing them."""
    missing = [name for name in PACKAGES if not _is_there(name)]
    version = ".".join(map(str, sys.version_info[:3]))
    what = f"Python {version}" + (
        f", without {', '.join(missing)}" if missing else f", {len(PACKAGES)} main packages found"
    )
    return Finding(name="python", good=not missing and sys.version_info >= (3, 11), what=what, mend="make setup")


def etcd() -> Finding:
    """The server's program."""
    program = shutil.which("etcd")
    if program is None:
        return Finding(name="etcd", good=False, what="is not installed", mend="apt-get install etcd-server")
    first = (
        subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.splitlines() or ["?"]
    )[0]
    return Finding(name="etcd", good=True, what=f"{first} ({program})", mend="")


def namespaces() -> Finding:
    """Whether private mounts and process trees may be made here."""
    if os.geteuid() != 0:
        return Finding(name="namespaces", good=False, what="need root", mend=f"sudo {sys.argv[0]} ...")
    if shutil.which("unshare") is None:
        return Finding(
            name="namespaces", good=False, what="the program unshare is missing", mend="apt-get install util-linux"
        )
    wrapper = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "true"]
    done = subprocess.run(wrapper, capture_output=True, text=True, check=False)
    what = "can be made" if done.returncode == 0 else f"are refused: {done.stderr.strip()[-200:]}"
    mend = "start this container with more rights: docker run --privileged ..." if done.returncode else ""
    return Finding(name="namespaces", good=done.returncode == 0, what=what, mend=mend)


def memory() -> Finding:
    """Memory that is free now; shared memory is part of it, because local mode mounts its own."""
    free = memory_of("MemAvailable")
    what = f"{free / GIB:.1f} GiB free, {NEEDED_MEMORY / GIB:.0f} wanted for the samples"
    return Finding(
        name="memory", good=free >= NEEDED_MEMORY, what=what, mend="end other programs, or take a larger machine"
    )


def disk() -> Finding:
    """Room for run folders, here."""
    free = shutil.disk_usage(".").free
    what = f"{free / GIB:.1f} GiB free in {Path.cwd()}, {NEEDED_DISK / GIB:.0f} wanted for run folders"
    return Finding(
        name="disk", good=free >= NEEDED_DISK, what=what, mend="free some, or run with --out on another disk"
    )


def processors() -> Finding:
    """Cores that this process may use."""
    count = len(os.sched_getaffinity(0))
    return Finding(name="processors", good=count >= 2, what=f"{count} cores", mend="the samples want at least 2 cores")


def accelerators() -> Finding:
    """Only for information: none is needed."""
    names = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    return Finding(
        name="accelerators", good=True, what=", ".join(names) or "none: trainer and engine run on the CPU", mend=""
    )


Look = Callable[[], Finding]
LOOKS: tuple[Look, ...] = (python, etcd, namespaces, memory, disk, processors, accelerators)


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
