"""The operator run from this checkout against a control plane: as its own account, with an etcd of its own.

Pods run nowhere; `play` plays the node and says of them what a kubelet would.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.cluster import Cluster

from twinpod.api import names
from twinpod.rpc.certificates import make_authority
from twinpod.testing.etcd_server import EtcdServer

ROOT = Path(__file__).parents[2]
NAMESPACE = "twinpod-system"
USER = f"system:serviceaccount:{NAMESPACE}:twinpod-operator"


class Replica:
    """One process of the operator."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def stop(self) -> None:
        if self.alive:
            self.signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class OperatorScene:
    """Life: `open`, replicas started and stopped by tests, `close`."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.authority = make_authority("platform")
        (folder / "etcd").mkdir()
        self.etcd = EtcdServer(folder / "etcd", self.authority)
        self.replicas: list[Replica] = []

    def open(self) -> None:
        """CRDs, namespace, roles, the platform's CA, etcd."""
        cluster = self.cluster
        for file in sorted((ROOT / "manifests/crds").glob("rl*.yaml")) + sorted(
            (ROOT / "manifests/crds").glob("*pools.yaml")
        ):
            cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(file))
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        cluster.kubectl("delete", "lease", names.LEASE, "-n", NAMESPACE, "--ignore-not-found")
        cluster.kubectl("delete", "secret", "--all", "-n", NAMESPACE)
        cluster.kubectl("apply", "-f", str(ROOT / "manifests/operator/rbac.yaml"))
        data = {"tls.crt": self.authority.certificate, "tls.key": self.authority.key}
        cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": names.ETCD_AUTHORITY, "namespace": NAMESPACE},
                "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
            },
            namespace=NAMESPACE,
        )
        cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        asyncio.run(self.etcd.start())
        self._kubeconfig()

    def close(self) -> None:
        for replica in self.replicas:
            replica.stop()
        self.etcd.kill()

    def start(self, **environment: str) -> Replica:
        """Another replica; returns at once."""
        log = self.folder / f"operator-{len(self.replicas)}.log"
        given = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("python", "operator", "sidecar")),
            "KUBECONFIG": str(self.folder / "kubeconfig"),
            "TWINPOD_MASTER_IMAGE": "twinpod/master",
            "TWINPOD_TRAINER_IMAGE": "twinpod/trainer",
            "TWINPOD_INFERENCE_IMAGE": "twinpod/inference",
            "TWINPOD_ETCD": self.etcd.endpoint,
            "TWINPOD_ETCD_ACCESS": "true",
            "TWINPOD_NAMESPACE": NAMESPACE,
            "TWINPOD_LEASE_S": "60",  # a machine that stands still for ten seconds ends no replica
            "TWINPOD_PORT": "0",
        }
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "twinpod_operator"], env=given | environment, stdout=file, stderr=file
            )
        replica = Replica(process, log)
        self.replicas.append(replica)
        return replica

    def lead(self, within_s: float = 60.0, **environment: str) -> Replica:
        """Another replica, that leads and has seen the world on return."""
        replica = self.start(**environment)
        self.cluster.wait("the operator leads", lambda: "seen:" in replica.text or not replica.alive, within_s)
        assert replica.alive, replica.text
        return replica

    def holder(self) -> str:
        found = self.cluster.get("lease", names.LEASE, namespace=NAMESPACE)
        return str(found["spec"].get("holderIdentity", ""))

    def job(self, name: str, namespace: str, **spec: Any) -> dict[str, Any]:
        """The smoke sample under another name, changed here and there; applied."""
        manifest: dict[str, Any] = yaml.safe_load((ROOT / "manifests/samples/smoke.yaml").read_text())
        manifest["metadata"] = {"name": name, "namespace": namespace}
        manifest["spec"] |= spec
        self.cluster.apply(manifest, namespace=namespace)
        return manifest

    def pods(self, namespace: str) -> list[dict[str, Any]]:
        return list(self.cluster.get("pods", namespace=namespace)["items"])

    def play(self, namespace: str, name: str, phase: str = "Running", **status: Any) -> None:
        """What a kubelet would say of a pod."""
        ready = "True" if phase == "Running" else "False"
        body = {"status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]} | status}
        self.cluster.kubectl(
            "patch", "pod", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", json.dumps(body)
        )

    def conditions(self, namespace: str, name: str, kind: str = "rlj") -> dict[str, tuple[str, str, str]]:
        """Type → status, reason, message."""
        found = self.cluster.get(kind, name, namespace=namespace).get("status", {}).get("conditions", [])
        return {one["type"]: (one["status"], one["reason"], one.get("message", "")) for one in found}

    def writes(self, since: int, home: str = "") -> list[str]:
        """What the operator's account wrote, but for its lease; in one namespace, if given. Those of earlier tests end
        some seconds after them, and the operator writes there until they have.
        """
        return [
            f"{request.verb} {request.resource} {request.namespace}/{request.name} {request.code}"
            for request in self.cluster.audit(since)
            if request.user == USER and request.writes and request.resource != "leases"
            if home in ("", request.namespace)
        ]

    def quiet(self, seconds: float, timeout_s: float = 60.0, home: str = "") -> bool:
        """Whether there comes a time of that many seconds without a write."""
        deadline = time.monotonic() + timeout_s
        mark, since = self.cluster.audit_mark(), time.monotonic()
        while time.monotonic() < deadline:
            if self.writes(mark, home):
                mark, since = self.cluster.audit_mark(), time.monotonic()
            if time.monotonic() - since > seconds:
                return True
            time.sleep(0.5)
        return False

    def stays_quiet(self, seconds: float, home: str = "") -> list[str]:
        """What is written in that time: nothing, where all is as it should be."""
        mark = self.cluster.audit_mark()
        time.sleep(seconds)
        return self.writes(mark, home)

    def _kubeconfig(self) -> None:
        """As the operator's own account, so that what it may not do fails here, too."""
        admin = yaml.safe_load(self.cluster.kubeconfig.read_text())
        token = self.cluster.kubectl("create", "token", "twinpod-operator", "-n", NAMESPACE, "--duration=12h").stdout
        (cluster,) = admin["clusters"]
        document = {
            "current-context": "operator",
            "clusters": [cluster],
            "users": [{"name": "operator", "user": {"token": token.strip()}}],
            "contexts": [{"name": "operator", "context": {"cluster": cluster["name"], "user": "operator"}}],
        }
        (self.folder / "kubeconfig").write_text(yaml.safe_dump(document))


def opened(cluster: Cluster, folder: Path) -> Iterator[OperatorScene]:
    """For fixtures."""
    made = OperatorScene(cluster, folder)
    try:
        made.open()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def scene(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorScene]:
    """One installation for a file of tests."""
    yield from opened(control_plane, tmp_path_factory.mktemp("operator"))


def scrape(port: int) -> str:
    """The metrics of a replica."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        return str(answer.read().decode())
