"""Twinpod itself on a cluster of tests: images of this checkout, CRDs, operator, etcd; as `make demo` installs them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from tests.cluster import building
from tests.cluster.cluster import Cluster
from tests.cluster.layout import ClusterFault

ROOT = Path(__file__).parents[2]
SYSTEM = "twinpod-system"


def install(cluster: Cluster) -> None:
    """Build what changed, push it, install, wait until it runs. Done again, it costs seconds.

    From then on this process's kubectl is the cluster's.
    """
    os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
    os.environ["PATH"] = f"{building.program('kubectl').parent}:{os.environ['PATH']}"
    if os.environ.get("TWINPOD_INSTALLED"):  # as it is there: for a person who tries something
        return
    for words in (("build",), ("push", "--registry", cluster.registry)):
        done = subprocess.run(
            [sys.executable, "tools/images", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ClusterFault(f"tools/images {words[0]}: {(done.stderr or done.stdout).strip()}")
    demo = _demo()
    demo.install(demo.Place(words="tests", context="", registry=cluster.registry, overlay="embedded"))


def _demo() -> ModuleType:
    """tools/demo as a module; its name has no ending."""
    loader = SourceFileLoader("twinpod_demo", str(ROOT / "tools/demo"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # its dataclasses look themselves up there
    loader.exec_module(module)
    return module
