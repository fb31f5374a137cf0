"""Twinpod itself on a cluster of tests: images of this checkout, CRDs, operator, etcd; as `make demo` installs them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import yaml
from tests.cluster import building
from tests.cluster.cluster import Cluster
from tests.cluster.layout import ClusterFault

ROOT = Path(__file__).parents[2]
SYSTEM = "twinpod-system"


def reach(cluster: Cluster) -> None:
    """From now on this process's kubectl is the cluster's."""
    os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
    os.environ["PATH"] = f"{building.program('kubectl').parent}:{os.environ['PATH']}"


def install(cluster: Cluster) -> None:
    """Build what changed, push it, install, wait until it runs. Done again, it costs seconds."""
    for words in (("build",), ("push", "--registry", cluster.registry)):
        done = subprocess.run(
            [sys.executable, "tools/images", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ClusterFault(f"tools/images {words[0]}: {(done.stderr or done.stdout).strip()}")
    demo = _demo()
    demo.install(demo.Place(words="tests", context="", registry=cluster.registry, overlay="embedded"))


def install_default(cluster: Cluster) -> None:
    """`manifests/default`, with three new members of etcd; two share a node, for there are two nodes."""
    listed = subprocess.check_output(
        [sys.executable, "tools/images", "list", "--registry", cluster.registry], cwd=ROOT, text=True
    )
    alone = [{"op": "remove", "path": "/spec/template/spec/affinity"}]
    patch = {"target": {"kind": "StatefulSet", "name": "twinpod-etcd"}, "patch": json.dumps(alone)}
    remove_etcd(cluster)
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "manifests"
        shutil.copytree(ROOT / "manifests", tree)
        file = tree / "default/kustomization.yaml"
        file.write_text(
            _demo().with_images(file.read_text(), json.loads(listed)) + str(yaml.safe_dump({"patches": [patch]}))
        )
        how = ("--server-side", "--force-conflicts", "--field-manager=twinpod-install")
        cluster.kubectl("apply", *how, "-k", str(file.parent))
    for what in ("deployment/twinpod-operator", "statefulset/twinpod-etcd"):
        cluster.kubectl("rollout", "status", what, "-n", SYSTEM, "--timeout=180s")


def remove_etcd(cluster: Cluster) -> None:
    """The platform's etcd with all that it knows."""
    cluster.kubectl("delete", "statefulset", "twinpod-etcd", "-n", SYSTEM, "--ignore-not-found")
    claims = [f"data-twinpod-etcd-{number}" for number in range(3)]
    cluster.kubectl("delete", "pvc", *claims, "-n", SYSTEM, "--ignore-not-found", "--timeout=90s")


def _demo() -> ModuleType:
    """tools/demo as a module; its name has no ending."""
    loader = SourceFileLoader("twinpod_demo", str(ROOT / "tools/demo"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # its dataclasses look themselves up there
    loader.exec_module(module)
    return module
