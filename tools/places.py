"""Where `make demo` and `make smoke` run: a cluster that somebody named, else one of this machine's own.

What is cheap to know is asked first: does the cluster answer, is there root, disk, memory. What takes long comes after.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from together import run_all
from watch import say

from twinpod.client.kubectl import Kubectl
from twinpod.errors import EnvironmentFault, InputError

TOP = Path(__file__).resolve().parents[1]
SYSTEM = "twinpod-system"
IMAGES_GIB = 9  # of disk, once they are built
MEMBERS = {"default": 3, "embedded": 1}  # of etcd, each on a node of its own, by overlay


@dataclass(frozen=True, kw_only=True)
class Place:
    """A cluster: how kubectl reaches it, where images go, which overlay fits it. `hints`: lines that help to use it."""

    words: str
    context: str
    registry: str
    overlay: str
    hints: tuple[str, ...] = ()


def find_place(*, must: bool) -> Place | None:
    """The cluster, with its images built and pushed; None for local mode. With `must` there is no local mode."""
    if context := os.environ.get("TWINPOD_CONTEXT", ""):
        return named(context, os.environ.get("TWINPOD_REGISTRY", ""))
    why = why_not_embedded()
    if not why:
        found = embedded()
        if isinstance(found, Place):
            return found
        why = found
    if must:
        raise EnvironmentFault(why, where="a cluster on this machine", mend="or name one: TWINPOD_CONTEXT")
    say(f"local mode, without Kubernetes: {why}")
    return None


# --- a cluster of others --------------------------------------------------------------------------------------------


def named(context: str, registry: str) -> Place:
    """The cluster of a context. Images are built only when the registry lacks some: that alone needs root."""
    if not registry:
        raise InputError("is not set", where="TWINPOD_REGISTRY", mend="name the registry that images are pushed to")
    kubectl = Kubectl(context=context)
    nodes = kubectl.json("get", "nodes")["items"]  # a mistyped context ends here
    overlay, why = overlay_for(nodes, kubectl.json("get", "statefulsets", "-n", SYSTEM)["items"])
    say(f"context {context}: manifests/{overlay}, {why}")
    to = ("--registry", registry, *tls(registry))
    if missing := answer([sys.executable, "tools/images", "missing", *to]).split():
        say(f"{registry} lacks {', '.join(missing)}")
        call("build images", [sys.executable, "tools/images", "build"])
        call("push images", [sys.executable, "tools/images", "push", *to])
    else:
        say(f"{registry} has all images of this tree")
    return Place(words=f"context {context}", context=context, registry=registry, overlay=overlay)


def overlay_for(nodes: Sequence[dict[str, Any]], sets: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Which overlay, and why: the installed one's, else three members of etcd where three nodes take them. Pure."""
    for one in sets:
        if one["metadata"]["name"] == "twinpod-etcd":
            count = int(one["spec"]["replicas"])
            overlay = "embedded" if count == MEMBERS["embedded"] else "default"
            return overlay, f"etcd was installed with {count} member{'s' * (count != 1)}"
    free = sum(takes_pods(node) for node in nodes)
    if free >= MEMBERS["default"]:
        return "default", "three members of etcd"
    return "embedded", f"one member of etcd: {free} of {len(nodes)} nodes take it, three members need 3"


def takes_pods(node: dict[str, Any]) -> bool:
    """Whether pods without tolerations can be placed on a node. Pure."""
    spec, conditions = node.get("spec", {}), node.get("status", {}).get("conditions", ())
    tainted = any(one["effect"] in ("NoSchedule", "NoExecute") for one in spec.get("taints", ()))
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and not tainted and not spec.get("unschedulable", False)


def tls(registry: str) -> list[str]:
    """A registry on this machine speaks plain HTTP, any other HTTPS."""
    return [] if registry.startswith(("127.", "localhost:")) else ["--tls"]


# --- a cluster of this machine --------------------------------------------------------------------------------------


def why_not_embedded() -> str:
    """Why this machine cannot have a cluster of its own, as far as it is known before building; empty when it can."""
    from tests.cluster import life
    from tests.cluster.layout import ClusterFault, cache, chosen_name

    images = 0 if (cache() / "images/store").is_dir() else IMAGES_GIB
    try:
        life.check(chosen_name(), "full", images)
    except ClusterFault as fault:
        return str(fault)
    return ""


def embedded() -> Place | str:
    """The cluster of this machine, or why it cannot be built. Programs (Go) and images are built side by side."""
    cluster = [sys.executable, "-m", "tests.cluster"]
    say("a cluster on this machine: building its programs and the images side by side (some 15 minutes the first time)")
    parts = {
        "the cluster's programs": [*cluster, "build"],
        "the images": [sys.executable, "tools/images", "build"],
    }
    if failed := run_all(parts, cwd=TOP, title="demo: building"):
        return f"{failed} could not be built; the lines above name the step and its log"
    call("start the cluster", [*cluster, "up"])
    kubeconfig, registry, kubectl = (answer([*cluster, what]) for what in ("kubeconfig", "registry", "kubectl"))
    hints = hints_of(kubeconfig, kubectl, shutil.which("kubectl"), os.environ.get("TWINPOD_CLUSTER", ""))
    os.environ["KUBECONFIG"] = kubeconfig
    os.environ["PATH"] = f"{Path(kubectl).parent}:{os.environ['PATH']}"
    call("push images", [sys.executable, "tools/images", "push", "--registry", registry])
    words = "the cluster on this machine"
    return Place(words=words, context="", registry=registry, overlay="embedded", hints=hints)


def hints_of(kubeconfig: str, kubectl: str, installed: str | None, name: str) -> tuple[str, ...]:
    """How a person uses the cluster in another shell, and ends it. `name`: the one that was asked for, if any. Pure."""
    path = () if installed else (f"export PATH={Path(kubectl).parent}:$PATH",)
    down = f"TWINPOD_CLUSTER={name} make cluster-down" if name else "make cluster-down"
    return (
        f"export KUBECONFIG={kubeconfig}",
        *path,
        f"{down}  # stops it and deletes all its volumes, trained models among them",
    )


# --- commands -------------------------------------------------------------------------------------------------------


def call(name: str, command: list[str]) -> None:
    """A step that prints its own progress; EnvironmentFault names it."""
    code = subprocess.run(command, cwd=TOP, check=False).returncode
    if code:
        raise EnvironmentFault(f"ended with exit code {code}; the lines above say why", where=name)


def answer(command: list[str]) -> str:
    """What a command prints; EnvironmentFault with its last words when it fails."""
    done = subprocess.run(command, cwd=TOP, check=False, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise EnvironmentFault(last, where=" ".join(command[1:4]))
    return done.stdout.strip()
