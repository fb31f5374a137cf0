"""What kubelets, nodes and a queue would say and do, said and done by a test on a control plane without nodes.

A pod that is bound here has a node without a kubelet, so its deletion waits for `leave`.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterator
from typing import Any

from tests.cluster.cluster import Cluster
from tests.cluster.operator_scene import OperatorScene

from twinpod.api import names

PREEMPTED = {
    "type": names.QUEUE_STOPPED,
    "status": "True",
    "reason": "WorkloadEvictedDueToPreempted",
    "message": "Preempted to accommodate a higher priority Workload",
}


def pod_names(scene: OperatorScene, home: str, attempt: int | None = None) -> list[str]:
    """Names of the pods that are there and not ending; of one attempt."""
    return sorted(
        pod["metadata"]["name"]
        for pod in scene.pods(home)
        if "deletionTimestamp" not in pod["metadata"]
        and (attempt is None or pod["metadata"]["name"].endswith(f"-a{attempt}"))
    )


def node_of(home: str) -> str:
    """The node of a namespace's pods. Each has its own: after half a minute a node without a kubelet counts as lost."""
    return f"node-{home}"


@contextlib.contextmanager
def node(scene: OperatorScene, home: str) -> Iterator[None]:
    """The node exists, and no pod fits on it by itself."""
    scene.cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node_of(home)}})
    try:
        yield
    finally:
        scene.cluster.kubectl("delete", "node", node_of(home))


def bind(scene: OperatorScene, home: str, name: str) -> None:
    """The scheduler's part."""
    body = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name, "namespace": home},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node_of(home)},
    }
    path = f"/api/v1/namespaces/{home}/pods/{name}/binding"
    scene.cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))


def crash(scene: OperatorScene, home: str, name: str, container: str, **end: Any) -> None:
    """A container of the pod ended, and the pod with it."""
    terminated = {"exitCode": 1, "reason": "Error", "finishedAt": _now()} | end
    state = {"name": container, "ready": False, "restartCount": 0, "image": "", "imageID": ""}
    scene.play(home, name, "Failed", containerStatuses=[state | {"state": {"terminated": terminated}}])


def wait_in(scene: OperatorScene, home: str, name: str, container: str, reason: str, message: str) -> None:
    """A container of the pod waits."""
    state = {"name": container, "ready": False, "restartCount": 0, "image": f"registry/{container}", "imageID": ""}
    waiting = {"waiting": {"reason": reason, "message": message}}
    scene.play(home, name, "Pending", containerStatuses=[state | {"state": waiting}])


def turn_away(scene: OperatorScene, home: str, name: str) -> None:
    """The node refuses the pod before any container begins."""
    said = {"reason": "UnexpectedAdmissionError", "message": "no devices"}
    conditions = [{"type": "Ready", "status": "False", "lastTransitionTime": _now()}]
    scene.play(home, name, "Failed", conditions=conditions, **said)


def leave(scene: OperatorScene, home: str, *pods: str) -> None:
    """The kubelet's word that nothing of a deleted pod runs any more."""
    scene.cluster.kubectl("delete", "pod", *pods, "-n", home, "--force", "--grace-period=0", "--ignore-not-found")


class FakeQueue:
    """What Kueue does with plain pods, as its documentation says. Life: `opened_queue`.

    Its webhook holds pods with the queue label by a gate, marks them as managed and keeps them by a finalizer. A group
    that is admitted has its gates taken off. A preemption sets TerminationTarget and deletes; a pod that ended goes
    only when another has taken its place in the group, or the group has ended.
    """

    def __init__(self, scene: OperatorScene, home: str) -> None:
        self._scene, self._home = scene, home

    def admit(self) -> list[str]:
        """Takes the gates off; returns whose."""
        admitted = []
        for pod in self._scene.pods(self._home):
            name, gates = pod["metadata"]["name"], pod["spec"].get("schedulingGates", [])
            if not any(gate["name"] == names.QUEUE_GATE for gate in gates):
                continue
            patch = {"spec": {"schedulingGates": [{"$patch": "delete", "name": names.QUEUE_GATE}]}}
            self._patch(name, "strategic", patch)
            admitted.append(name)
        return sorted(admitted)

    def preempt(self, *pods: str) -> None:
        """Takes pods back; they stay for as long as the finalizer holds them."""
        for name in pods:
            status = {"status": {"conditions": [PREEMPTED]}}
            self._patch(name, "strategic", status, "--subresource=status")
        self._scene.cluster.kubectl("delete", "pod", *pods, "-n", self._home, "--wait=false")

    def release(self, *pods: str) -> None:
        """Lets go of pods that were replaced."""
        for name in pods:
            self._patch(name, "merge", {"metadata": {"finalizers": None}})

    def _patch(self, name: str, kind: str, body: dict[str, Any], *more: str) -> None:
        self._scene.cluster.kubectl(
            "patch", "pod", name, "-n", self._home, f"--type={kind}", "-p", json.dumps(body), *more
        )


@contextlib.contextmanager
def opened_queue(scene: OperatorScene, home: str) -> Iterator[FakeQueue]:
    """A queue that has its webhook in one namespace."""
    cluster = scene.cluster
    _webhook(cluster, home)
    limited = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    careful = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    probe = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe", "labels": {names.QUEUE_LABEL: "team"}},
        "spec": {"containers": [{"name": "c", "image": "i", "securityContext": limited}], "securityContext": careful},
    }

    def held() -> bool:
        text = json.dumps(probe)
        found = cluster.kubectl("create", "--dry-run=server", "-o", "json", "-n", home, "-f", "-", stdin=text)
        return names.QUEUE_GATE in found.stdout

    try:
        cluster.wait("the queue's webhook works", held)
        yield FakeQueue(scene, home)
    finally:
        cluster.kubectl("delete", "mutatingadmissionpolicybinding,mutatingadmissionpolicy", f"queue-{home}")


def _webhook(cluster: Cluster, home: str) -> None:
    name = f"queue-{home}"
    expression = (
        f'Object{{metadata: Object.metadata{{labels: {{"{names.QUEUE_FINALIZER}": "true"}}, '
        f'finalizers: ["{names.QUEUE_FINALIZER}"]}}, '
        f'spec: Object.spec{{schedulingGates: [Object.spec.schedulingGates{{name: "{names.QUEUE_GATE}"}}]}}}}'
    )
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {
                "resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
                ],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": home}},
                "objectSelector": {"matchExpressions": [{"key": names.QUEUE_LABEL, "operator": "Exists"}]},
            },
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name},
    }
    cluster.apply(policy, binding)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
