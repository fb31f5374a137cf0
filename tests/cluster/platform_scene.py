"""Jobs with real pods on the two nodes: applied, followed by their status, read by `twinpod inspect`."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import namespace
from tests.cluster.layout import ClusterFault
from tests.cluster.platform import ROOT, install, reach

from twinpod.api import names
from twinpod.client.cluster import ClusterJob
from twinpod.client.kubectl import Kubectl

START_S, END_S, LOOK_S = 240.0, 300.0, 1.0  # on a machine that is busy with other things
Manifest = dict[str, Any]


class PlatformScene:
    """One restricted namespace. Jobs are the smoke sample, changed here and there."""

    def __init__(self, cluster: Cluster, home: str) -> None:
        self.cluster, self.home = cluster, home

    def job(self, name: str, **spec: Any) -> None:
        """Apply a job; mappings in `spec` are merged into the sample's."""
        manifest: Manifest = yaml.safe_load((ROOT / "manifests/samples/smoke.yaml").read_text())
        manifest["metadata"] = {"name": name}
        manifest["spec"] = merged(manifest["spec"], spec)
        self.cluster.apply(manifest, namespace=self.home)

    def pool(self, name: str, job: str, replicas: int, **spec: Any) -> None:
        """Apply a pool with an engine like that of the sample."""
        given = {"job": job, "replicas": replicas, "sharedMemory": "64Mi", "inference": {"kvTokens": 2048}}
        manifest = {"apiVersion": names.API_VERSION, "kind": "RolloutPool", "metadata": {"name": name}}
        self.cluster.apply({**manifest, "spec": merged(given, spec)}, namespace=self.home)

    def scale(self, pool: str, replicas: int) -> None:
        """As a person would."""
        self.cluster.kubectl("scale", f"rolloutpool/{pool}", f"--replicas={replicas}", "-n", self.home)

    def resource(self, name: str, kind: str = "rlj") -> Manifest:
        return self.cluster.get(kind, name, namespace=self.home)

    def status(self, name: str, kind: str = "rlj") -> Manifest:
        return dict(self.resource(name, kind).get("status") or {})

    def condition(self, name: str, condition: str, kind: str = "rlj") -> tuple[str, str, str]:
        """Status, reason, message; empty ones before there is one."""
        for one in self.status(name, kind).get("conditions", ()):
            if one["type"] == condition:
                return one["status"], one["reason"], one.get("message", "")
        return "", "", ""

    def iteration(self, name: str) -> int:
        """Committed iterations, as the status tells."""
        return int(self.status(name).get("iteration", 0))

    def pods(self, name: str, role: str = "") -> list[Manifest]:
        """Pods of a job that are not on their way out, oldest first."""
        selector = f"{names.LABEL_JOB}={name}" + (f",{names.LABEL_ROLE}={role}" if role else "")
        found = self.cluster.get("pods", "-l", selector, namespace=self.home)["items"]
        alive = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
        return sorted(alive, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def wait_iteration(self, name: str, iteration: int, timeout_s: float = START_S) -> None:
        """Until so many are committed; a job that failed meanwhile is told of at once."""
        self.wait(name, f"iteration {iteration}", lambda: self.iteration(name) >= iteration, timeout_s)

    def wait_end(self, name: str, timeout_s: float = END_S) -> None:
        """Until it has succeeded."""
        self.wait(name, "Succeeded", lambda: self.condition(name, "Succeeded")[0] == "True", timeout_s)

    def wait(
        self, name: str, what: str, done: Callable[[], bool], timeout_s: float, *, every_s: float = LOOK_S
    ) -> None:
        """Until `done`; a job that failed meanwhile, or a time that went by, shows what a person would look at."""

        def look() -> bool:
            if done():
                return True
            if self.condition(name, "Failed")[0] == "True":
                raise ClusterFault(f"{name} has failed before {what}")
            return False

        self.look_until(name, what, look, timeout_s, every_s)

    def wait_reason(self, name: str, reason: str, part: str = "", *, within_s: float = 60.0) -> str:
        """Until `Ready` or `Degraded` says the reason, and this in its message; the message."""
        seen: list[str] = []

        def told() -> bool:
            found = [self.condition(name, kind) for kind in ("Ready", "Degraded")]
            seen.extend(message for _, why, message in found if why == reason and part in message)
            return bool(seen)

        self.look_until(name, f"tells {reason}", told, within_s)
        return seen[-1]

    def look_until(
        self, name: str, what: str, done: Callable[[], bool], timeout_s: float, every_s: float = LOOK_S
    ) -> None:
        """Looks only once a second: each look is a process, and processors are few."""
        deadline = time.monotonic() + timeout_s
        try:
            while not done():
                if time.monotonic() > deadline:
                    raise ClusterFault(f"not after {timeout_s:.0f} s: {name}: {what}")
                time.sleep(every_s)
        except ClusterFault:
            self.show(name)
            raise

    def stays(self, holds: Callable[[], bool], for_s: float) -> bool:
        """Whether it holds for so long, as often as it is looked at."""
        deadline = time.monotonic() + for_s
        while time.monotonic() < deadline:
            if not holds():
                return False
            time.sleep(LOOK_S)
        return True

    def inspect(self, name: str) -> Manifest:
        """What `twinpod inspect rlj/NAME --json` prints."""
        job = ClusterJob(name=name, kubectl=Kubectl(namespace=self.home))
        found: Manifest = json.loads(job.inspect("--json"))
        return found

    def show(self, name: str) -> None:
        """To stderr: the job, the pods, and the ends of their logs."""
        for words in (
            ("describe", "rlj", name),
            ("get", "pods", "-o", "wide"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            ("logs", "-l", f"{names.LABEL_JOB}={name}", "--all-containers", "--prefix", "--tail=15"),
        ):
            print(self.cluster.kubectl(*words, "-n", self.home, check=False).stdout[-6000:], file=sys.stderr)

    def delete(self, name: str, timeout_s: float = 150.0) -> None:
        """A job and all that waits for its end; pods are gone on return."""
        self.cluster.kubectl("delete", "rlj", name, "-n", self.home, f"--timeout={timeout_s:.0f}s")
        selector = f"{names.LABEL_JOB}={name}"
        self.cluster.wait(
            f"pods of {name} are gone",
            lambda: not self.cluster.get("pods", "-l", selector, namespace=self.home)["items"],
            timeout_s,
        )


def merged(base: Manifest, change: Manifest) -> Manifest:
    """Mappings in each other, everything else replaced. Pure."""
    result = copy.deepcopy(base)
    for key, value in change.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def on_node(node: str) -> Manifest:
    """A podPatch that keeps pods on a node."""
    return {"podPatch": {"spec": {"nodeSelector": {"kubernetes.io/hostname": node}}}}


@contextlib.contextmanager
def opened(cluster: Cluster) -> Iterator[PlatformScene]:
    """A scene whose jobs are gone at its end, before its namespace."""
    with namespace(cluster, restricted=True) as home:
        scene = PlatformScene(cluster, home)
        try:
            yield scene
        finally:
            everything = ("delete", "rljobs,rolloutpools", "--all", "-n", home)
            cluster.kubectl(*everything, "--wait=true", "--timeout=150s", check=False)


@pytest.fixture(scope="module")
def platform(cluster: Cluster) -> Cluster:
    """A cluster with Twinpod on it; TWINPOD_INSTALLED takes it as it is there, for a person who tries something."""
    reach(cluster)
    if not os.environ.get("TWINPOD_INSTALLED"):
        install(cluster)
    return cluster


@pytest.fixture
def scene(platform: Cluster) -> Iterator[PlatformScene]:
    """A namespace of one's own."""
    with opened(platform) as made:
        yield made
