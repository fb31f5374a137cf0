"""A cluster as tests see it: objects through kubectl, parts stopped and started, requests counted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import building, supervisor
from tests.cluster.images import Image, push
from tests.cluster.layout import ClusterFault, Layout

PATIENCE_S = 60.0
LOOK_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One line of the audit log. `code`: the HTTP status; `resource` is plural, with `/` and the subresource."""

    user: str
    verb: str
    resource: str
    namespace: str
    name: str
    code: int
    at: str
    agent: str  # what the client calls itself

    @property
    def writes(self) -> bool:
        return self.verb in ("create", "update", "patch", "delete", "deletecollection")


class Cluster:
    """A running cluster. Parts that a test stopped stay stopped until it starts them again."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    @property
    def kubeconfig(self) -> Path:
        """The administrator's, of user `kubernetes-admin`."""
        return self.layout.kubeconfig

    @property
    def nodes(self) -> tuple[str, ...]:
        return self.layout.nodes

    @property
    def registry(self) -> str:
        """host:port, the same for pushes and for pulls."""
        return self.layout.registry

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kubectl; with `check`, ClusterFault tells what it said when it fails."""
        command = [str(building.program("kubectl")), "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            raise ClusterFault(f"kubectl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def apply(self, *objects: Mapping[str, Any], namespace: str = "default") -> None:
        """Server-side apply."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kubectl("apply", "--server-side", "-n", namespace, "-f", "-", stdin=text)

    def get(self, *what: str, namespace: str = "default") -> dict[str, Any]:
        """An object or a list, as JSON."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *what, "-n", namespace, "-o", "json").stdout)
        return found

    def wait(self, what: str, done: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """Until `done`; ClusterFault after the time."""
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                raise ClusterFault(f"not after {timeout_s:.0f} s: {what}")
            time.sleep(LOOK_S)

    def push(self, name: str, image: Image) -> str:
        """Push an image and return the name that pods take it by."""
        return push(self.registry, name, image)

    def kill(self, program: str) -> None:
        """SIGKILL a program, and keep it stopped. It is gone on return."""
        (self.layout.held / program).touch()
        if pid := self.pid(program):
            os.kill(pid, signal.SIGKILL)
        self._wake()
        self.wait(f"{program} ended", lambda: not self.pid(program))

    def start(self, program: str) -> None:
        """Let a killed program run again; returns when it has a process."""
        (self.layout.held / program).unlink(missing_ok=True)
        self._wake()
        self.wait(f"{program} started", lambda: bool(self.pid(program)))

    def pid(self, program: str) -> int:
        """Process number of a program, 0 when it does not run."""
        try:
            return int((self.layout.pids / program).read_text() or "0")
        except FileNotFoundError:
            return 0

    def kill_kubelet(self, node: str) -> None:
        """The node falls silent; its pods live on."""
        self.kill(f"kubelet-{node}")

    def start_kubelet(self, node: str) -> None:
        """The node comes back."""
        self.start(f"kubelet-{node}")

    def kill_driver(self, node: str) -> None:
        """No claim of the node is prepared or unprepared any more."""
        self.kill(f"devices-{node}")

    def start_driver(self, node: str) -> None:
        """It registers again and publishes its devices."""
        self.start(f"devices-{node}")

    def node_ready(self, node: str) -> bool:
        """What the control plane believes."""
        states = {one["type"]: one["status"] for one in self.get("node", node)["status"].get("conditions", [])}
        return states.get("Ready") == "True"

    def audit_mark(self) -> int:
        """Where the audit log ends now."""
        return self.layout.audit_log.stat().st_size

    def audit(self, since: int = 0) -> Iterator[Request]:
        """Every request answered after the mark, but reads of Kubernetes' own parts and leases of nodes."""
        with open(self.layout.audit_log, "rb") as file:
            if since:
                file.seek(since - 1)
                file.readline()  # the mark may have been set in the middle of a line
            for line in file:
                if not line.endswith(b"\n"):
                    return
                if (request := _request(json.loads(line))) is not None:
                    yield request

    def requests_by(self, user: str, since: int = 0) -> Counter[str]:
        """Number of requests of a user, by verb."""
        return Counter(request.verb for request in self.audit(since) if request.user == user)

    def _wake(self) -> None:
        if pid := supervisor.running(self.layout):
            os.kill(pid, signal.SIGUSR1)


def _request(event: Mapping[str, Any]) -> Request | None:
    if event["stage"] not in ("ResponseComplete", "Panic"):
        return None
    about = event.get("objectRef", {})
    parts: Sequence[str] = [part for part in (about.get("resource", ""), about.get("subresource", "")) if part]
    return Request(
        user=event["user"].get("username", ""),
        verb=event["verb"],
        resource="/".join(parts),
        namespace=about.get("namespace", ""),
        name=about.get("name", ""),
        code=int(event.get("responseStatus", {}).get("code", 0)),
        at=event["stageTimestamp"],
        agent=event.get("userAgent", ""),
    )
