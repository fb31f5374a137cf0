"""A cluster in a dictionary: an API server, a scheduler with so many devices, a kubelet and a queue. For the operator.

Nothing happens by itself: `reconcile` runs the operator once for a resource, `settle` lets the cluster answer and time
pass. Faults are methods. What the operator sees of the pods can be held back (`hold`): then it sees an old state, its
own writes apart, as with a watch that lags. A spec that a real API server does not let change is refused here, too.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from twinpod.api import names
from twinpod.api.types import RLJob
from twinpod.records.run import PhaseSeconds, Progress
from twinpod_operator import nouns
from twinpod_operator.actions import ActionMark, let_through, mark
from twinpod_operator.nouns import Key, Manifest, Observed, PodView, ProgressView, Reach
from twinpod_operator.ownership import wanted_digest
from twinpod_operator.plan import plan
from twinpod_operator.policies import gang
from twinpod_operator.policies.memory import stamp
from twinpod_operator.reading import pod_view, unix
from twinpod_operator.render_containers import Platform
from twinpod_operator.status import patch

PLATFORM = Platform(master_image="m:1", trainer_image="t:1", inference_image="i:1", etcd=("etcd:2379",))
GRACE_S = 60.0
IMMUTABLE = ("PersistentVolumeClaim", "ResourceClaimTemplate")  # their spec, once they are there
NO_SECONDS = PhaseSeconds(generate=0.0, train=0.0, weights=0.0, switch=0.0, snapshot=0.0, other=0.0)


@dataclass(slots=True, kw_only=True)
class Resource:
    """A job in the API server."""

    job: RLJob
    uid: str
    spec: Manifest  # of the job, as JSON
    labels: dict[str, str] = field(default_factory=dict)
    generation: int = 1
    finalizers: tuple[str, ...] = ()
    deleting_since: float = 0.0
    status: Manifest = field(default_factory=dict)
    children: dict[tuple[str, str], nouns.ChildView] = field(default_factory=dict)
    manifests: dict[tuple[str, str], Manifest] = field(default_factory=dict)  # what was applied last, whole
    swept: bool = False
    refusals: tuple[nouns.Finding, ...] = ()
    progress: ProgressView = field(default_factory=lambda: ProgressView(reach=Reach.NOT_LOOKED))


_CLUSTERS = itertools.count()


class FakeCluster:
    """See the module. `devices`: how many there are in all; each hybrid pod takes what its job says."""

    def __init__(self, devices: int = 8) -> None:
        self.now, self.devices = 1_800_000_000.0, devices
        self.resources: dict[Key, Resource] = {}
        self.pods: dict[str, Manifest] = {}
        self.lost_nodes: set[str] = set()
        self.events: list[nouns.Emit] = []
        self.writes = 0  # of the operator
        self.etcd_down = False
        self.refuse: Callable[[Manifest], nouns.Finding | None] = lambda manifest: None
        self.lose: Callable[[], bool] = lambda: False  # an action is lost
        self.proved: list[str] = []  # names of pods that were asked for as a dry run
        self.created: list[str] = []  # names of pods, in order
        self._seen: dict[str, Manifest] | None = None
        self._numbers, self._cluster = 0, next(_CLUSTERS)  # uids are never used twice, as in the world

    # --- people -----------------------------------------------------------------------------------------------------

    def submit(self, job: RLJob, labels: dict[str, str] | None = None) -> Key:
        """Somebody applies a job."""
        key = Key(kind="RLJob", namespace=job.metadata.namespace, name=job.metadata.name)
        self.resources[key] = Resource(job=job, uid=self._uid(), spec=job.as_manifest()["spec"], labels=labels or {})
        return key

    def edit(self, key: Key, **spec: Any) -> None:
        """Somebody changes fields of the spec (snake_case)."""
        one = self.resources[key]
        one.job = one.job.model_copy(update={"spec": one.job.spec.model_copy(update=spec)})
        one.spec, one.generation = one.job.as_manifest()["spec"], one.generation + 1

    def delete(self, key: Key) -> None:
        """Somebody deletes the job."""
        self.resources[key].deleting_since = self.now

    def edit_child(self, key: Key, kind: str, name: str) -> None:
        """Somebody edits a field of ours in a child."""
        child = self.resources[key].children[kind, name]
        self.resources[key].children[kind, name] = nouns.ChildView(
            kind=kind, name=name, uid=child.uid, revision=child.revision, digest="edited", renew_at=child.renew_at
        )

    def remove_child(self, key: Key, kind: str, name: str) -> None:
        """A child that is no pod is deleted, and is gone."""
        self.resources[key].children.pop((kind, name), None)
        self.resources[key].manifests.pop((kind, name), None)

    def resize(self, key: Key, claim: str, size: str) -> None:
        """An administrator enlarges a volume claim."""
        spec = self.resources[key].manifests["PersistentVolumeClaim", claim]["spec"]
        spec["resources"] = {"requests": {"storage": size}}

    def owner_of(self, key: Key, kind: str, name: str) -> list[str]:
        """Kinds of the owners of a child."""
        metadata = self.resources[key].manifests[kind, name]["metadata"]
        return [one["kind"] for one in metadata.get("ownerReferences", ())]

    # --- the operator -----------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """From now on the operator sees the pods as they are now, its own writes apart."""
        self._seen = copy.deepcopy(self.pods)

    def release(self) -> None:
        """The operator sees everything again."""
        self._seen = None

    def observed(self, key: Key) -> Observed:
        """What the operator sees of a job."""
        one = self.resources[key]
        pods = [pod_view(raw) for raw in self._visible().values() if _owner(raw) == one.uid]
        raw = {"metadata": {"name": key.name, "labels": one.labels}, "spec": one.spec}
        unreachable = ProgressView(reach=Reach.UNREACHABLE, message="etcd:2379 does not answer")
        return Observed(
            key=key,
            uid=one.uid,
            generation=one.generation,
            raw=raw,
            resource=one.job,
            deleting_since=one.deleting_since,
            finalizers=one.finalizers,
            status=copy.deepcopy(one.status),
            pods=tuple(sorted(pods, key=lambda pod: pod.name)),
            children=tuple(one.children.values()),
            refusals=one.refusals,
            progress=unreachable if self.etcd_down else one.progress,
            turn=self._turns().get(gang.device_class(one.job)),
            swept=one.swept,
        )

    def reconcile(self, key: Key) -> nouns.Plan:
        """Observe, plan, act, one patch of the status; with lost actions where `lose` says so."""
        one = self.resources[key]
        made = plan(self.observed(key), PLATFORM, self.now)
        one.refusals = ()
        undone: set[ActionMark] = set()
        for action in made.actions:
            if let_through((action,), undone) and (self.lose() or not self._act(key, action)):
                undone.add(mark(action))
        change = patch(one.status, made.status)
        if change is not None and not self.lose() and key in self.resources:
            self.writes += 1
            one.status = {name: value for name, value in {**one.status, **change}.items() if value is not None}
        return made

    def run(self, key: Key, seconds: float, step: float = 5.0) -> None:
        """Reconcile and let the cluster answer, until so much time has passed."""
        end = self.now + seconds
        while self.now < end:
            for one in list(self.resources) if key.name == "*" else [key]:
                if one in self.resources:
                    self.reconcile(one)
            self.settle(step)

    # --- the cluster ------------------------------------------------------------------------------------------------

    def settle(self, seconds: float = 5.0) -> None:
        """Time passes: the scheduler binds, kubelets start and end pods, finalizers that are done go."""
        self.now += seconds
        for name, raw in list(self.pods.items()):
            deletion = unix(raw["metadata"].get("deletionTimestamp"))
            held = raw["metadata"].get("finalizers")
            node = raw["spec"].get("nodeName", "")
            if deletion and node not in self.lost_nodes and not held:
                del self.pods[name]
                if self._seen is not None and name not in self.created[-4:]:
                    continue
            elif not deletion and raw["status"]["phase"] == "Pending":
                self._start(raw)
        for key, one in list(self.resources.items()):
            if one.deleting_since and not one.finalizers:
                del self.resources[key]
                for name in [name for name, raw in self.pods.items() if _owner(raw) == one.uid]:
                    del self.pods[name]

    def crash(self, name: str, code: int = 1, *, reason: str = "Error", message: str = "it fell") -> None:
        """The pod's container ends with `code`; 0 succeeds."""
        raw = self.pods[name]
        ended = {"exitCode": code, "reason": reason, "message": message, "finishedAt": stamp(self.now)}
        container = raw["spec"]["containers"][0]["name"]
        raw["status"]["phase"] = "Failed" if code else "Succeeded"
        raw["status"]["containerStatuses"] = [{"name": container, "state": {"terminated": ended}}]
        raw["status"]["conditions"] = [{"type": "Ready", "status": "False"}]

    def evict(self, name: str, reason: str = "EvictionByEvictionAPI") -> None:
        """The pod is taken away by others than the job."""
        raw = self.pods[name]
        raw["status"]["conditions"] = [
            {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "drained"},
            {"type": "Ready", "status": "False"},
        ]
        self._mark_deleted(raw)

    def lose_node(self, node: str) -> None:
        """The node's kubelet answers no more; its pods hang once they are deleted."""
        self.lost_nodes.add(node)
        for raw in self.pods.values():
            if raw["spec"].get("nodeName") == node and not raw["metadata"].get("deletionTimestamp"):
                self.evict(raw["metadata"]["name"], "DeletionByTaintManager")

    def remove(self, name: str) -> None:
        """Somebody deletes the pod, and it is gone."""
        del self.pods[name]

    def restart_sidecar(self, name: str, code: int = 137, *, message: str = "") -> None:
        """The kubelet starts the native sidecar again; it ran out of memory unless `code` says otherwise."""
        status = self.pods[name]["status"]
        count = status.get("initContainerStatuses", [{"restartCount": 0}])[0]["restartCount"] + 1
        why = "OOMKilled" if code == 137 else "Error"
        last = {"terminated": {"exitCode": code, "reason": why, "message": message}}
        status["initContainerStatuses"] = [
            {"name": "inference", "restartCount": count, "state": {"running": {}}, "lastState": last}
        ]

    def wait_with(self, name: str, reason: str, message: str = "no such image") -> None:
        """A container waits for something that does not come."""
        raw = self.pods[name]
        container = raw["spec"]["containers"][0]
        waiting = {"waiting": {"reason": reason, "message": message}}
        raw["status"]["containerStatuses"] = [{"name": container["name"], "image": "i:1", "state": waiting}]
        raw["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
        raw["status"]["phase"] = "Pending"
        raw["stuck"] = True

    def tell(self, key: Key, *, iteration: int, version: int, phase: str = "generate", reward: float = 0.5) -> None:
        """The master writes its progress to etcd."""
        record = Progress(
            state="Running",
            epoch=1,
            iteration=iteration,
            iterations=100,
            version=version,
            phase=phase,
            since=self.now,
            groups_finished=0,
            groups_wanted=1,
            reward=reward,
            right=math.nan,
            length=math.nan,
            tokens_per_s=math.nan,
            seconds=NO_SECONDS,
            waiting_for="",
            eta_s=math.nan,
            message="",
            updated=self.now,
        )
        self.resources[key].progress = ProgressView(reach=Reach.READ, record=record, read_at=self.now)

    # --- a queue, as Kueue's documentation describes it for groups of plain pods -------------------------------------

    def admit(self, key: Key) -> None:
        """The queue lets the job's pods go."""
        for raw in self._of(key):
            gates = raw["spec"].get("schedulingGates", [])
            raw["spec"]["schedulingGates"] = [gate for gate in gates if gate["name"] != names.QUEUE_GATE]

    def preempt(self, key: Key) -> None:
        """The queue takes the job's pods back."""
        for raw in self._of(key):
            if not raw["metadata"].get("deletionTimestamp"):
                said = {"type": names.QUEUE_STOPPED, "status": "True", "reason": "WorkloadEvictedDueToPreempted"}
                raw["status"]["conditions"] = [said, {"type": "Ready", "status": "False"}]
                raw["status"]["phase"] = "Failed"
                self._mark_deleted(raw)

    def finalize(self, key: Key) -> None:
        """The queue lets go of pods that are replaced, that succeeded, or whose group has ended."""
        pods = list(self._of(key))
        ended = any((raw["metadata"].get("annotations") or {}).get(names.QUEUE_RETRIABLE) == "false" for raw in pods)
        for raw in pods:
            place = (raw["metadata"]["labels"][names.LABEL_ROLE], raw["metadata"]["labels"][names.LABEL_INDEX])
            younger = any(
                (other["metadata"]["labels"][names.LABEL_ROLE], other["metadata"]["labels"][names.LABEL_INDEX]) == place
                and int(other["metadata"]["labels"][names.LABEL_ATTEMPT])
                > int(raw["metadata"]["labels"][names.LABEL_ATTEMPT])
                for other in pods
            )
            if younger or ended or raw["status"]["phase"] == "Succeeded":
                raw["metadata"].pop("finalizers", None)

    # --- inside -----------------------------------------------------------------------------------------------------

    def views(self, key: Key) -> list[PodView]:
        """The job's pods as they are, whatever the operator sees."""
        return [pod_view(raw) for raw in self._of(key)]

    def _of(self, key: Key) -> Iterator[Manifest]:
        uid = self.resources[key].uid
        return (raw for raw in list(self.pods.values()) if _owner(raw) == uid)

    def _visible(self) -> dict[str, Manifest]:
        return self.pods if self._seen is None else self._seen

    def _turns(self) -> dict[str, Key]:
        lines = []
        for key, one in self.resources.items():
            pods = [pod_view(raw) for raw in self._visible().values() if _owner(raw) == one.uid]
            lines.append(gang.contender(key, pods))
        return dict(gang.turn(line for line in lines if line is not None))

    def _start(self, raw: Manifest) -> None:
        """Bind and run a pod, if no gate holds it and devices are free."""
        spec, status = raw["spec"], raw["status"]
        if spec.get("schedulingGates") or raw.get("stuck"):
            return
        if not spec.get("nodeName"):
            used = sum(_devices(other, self.resources) for other in self.pods.values() if _holds(other))
            if used + _devices(raw, self.resources) > self.devices:
                said = "0/2 nodes are available: 2 cannot allocate all claims"
                status["conditions"] = [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}
                ]
                return
            alive = [node for node in ("node-0", "node-1") if node not in self.lost_nodes]
            if not alive:
                return
            spec["nodeName"] = alive[len(raw["metadata"]["name"]) % len(alive)]
            status["conditions"] = [{"type": "PodScheduled", "status": "True"}]
        else:
            status["phase"] = "Running"
            status["conditions"] = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]

    def _act(self, key: Key, action: nouns.Action) -> bool:
        """False when it was refused."""
        self.writes += not isinstance(action, nouns.Emit)
        one = self.resources[key]
        match action:
            case nouns.Create(manifest=manifest):
                return self._create(one, manifest)
            case nouns.Prove(manifest=manifest):
                self.proved.append(manifest["metadata"]["name"])
                return not self._refused(one, manifest)
            case nouns.Apply(manifest=manifest, uid=uid):
                return self._apply(one, manifest, uid)
            case nouns.IssueCertificates(manifest=manifest):
                name = ("Secret", manifest["metadata"]["name"])
                one.children[name] = nouns.ChildView(
                    kind="Secret", name=name[1], uid=self._uid(), revision="d", digest="d", renew_at=self.now + 120
                )
            case nouns.Delete():
                self._delete(key, action)
            case nouns.Ungate(name=name, uid=uid):
                self._change(name, uid, _open_gate)
            case nouns.Mark(name=name, uid=uid, annotation=annotation, value=value):
                self._change(
                    name, uid, lambda raw: raw["metadata"].setdefault("annotations", {}).update({annotation: value})
                )
            case nouns.Label(name=name, uid=uid, labels=labels):
                self._change(name, uid, lambda raw: raw["metadata"]["labels"].update(labels))
            case nouns.Sweep():
                one.swept = not self.etcd_down
            case nouns.SetFinalizers(finalizers=finalizers):
                one.finalizers = finalizers
            case nouns.Emit():
                self.events.append(action)
        return True

    def _refused(self, one: Resource, manifest: Manifest) -> bool:
        refusal = self.refuse(manifest)
        if refusal is not None:
            one.refusals = (*one.refusals, refusal)
        return refusal is not None

    def _apply(self, one: Resource, manifest: Manifest, uid: str) -> bool:
        if self._refused(one, manifest):
            return False
        name = (manifest["kind"], manifest["metadata"]["name"])
        there, before = one.children.get(name), one.manifests.get(name, {})
        spec = manifest.get("spec", before.get("spec"))
        if there is not None and name[0] in IMMUTABLE and spec != before.get("spec"):
            invalid = nouns.Finding(reason=names.Reason.CHILD_INVALID, message=f"{name[1]}: spec is immutable")
            one.refusals = (*one.refusals, invalid)
            return False
        assert there is None or uid == there.uid, "what is there is changed by its uid"
        assert there is not None or "spec" in manifest or name[0] != "PersistentVolumeClaim", "made with its spec"
        one.manifests[name] = copy.deepcopy(manifest) | ({"spec": spec} if spec is not None else {})
        one.children[name] = nouns.ChildView(
            kind=name[0],
            name=name[1],
            uid=uid or self._uid(),
            revision=manifest["metadata"]["annotations"][names.ANNOTATION_REVISION],
            digest=wanted_digest(manifest),
        )
        return True

    def _create(self, one: Resource, manifest: Manifest) -> bool:
        name = manifest["metadata"]["name"]
        if self._refused(one, manifest):
            return False
        if name in self.pods:
            return True
        raw = copy.deepcopy(manifest)
        raw["metadata"] |= {"uid": self._uid(), "creationTimestamp": stamp(self.now)}
        raw["status"] = {"phase": "Pending", "conditions": []}
        if names.QUEUE_LABEL in one.labels:
            raw["metadata"]["finalizers"] = [names.QUEUE_FINALIZER]
            raw["spec"]["schedulingGates"] = [{"name": names.QUEUE_GATE}]
        self.pods[name] = raw
        self.created.append(name)
        if self._seen is not None:
            self._seen[name] = raw
        return True

    def _delete(self, key: Key, action: nouns.Delete) -> None:
        if action.kind == "Pod":
            self._change(action.name, action.uid, self._mark_deleted)
        elif action.kind == "RLJob":
            self.delete(key)
        else:
            self.remove_child(key, action.kind, action.name)

    def _change(self, name: str, uid: str, change: Callable[[Manifest], None]) -> None:
        for pods in (self.pods, self._seen):
            if pods is not None and name in pods and pods[name]["metadata"]["uid"] == uid:
                change(pods[name])

    def _mark_deleted(self, raw: Manifest) -> None:
        if not raw["metadata"].get("deletionTimestamp"):
            raw["metadata"]["deletionTimestamp"] = stamp(self.now + GRACE_S)
            raw["metadata"]["deletionGracePeriodSeconds"] = int(GRACE_S)

    def _uid(self) -> str:
        self._numbers += 1
        return f"uid-{self._numbers:08d}-{self._cluster}"


def _owner(raw: Manifest) -> str:
    return str(raw["metadata"]["labels"][names.LABEL_JOB_UID])


def _holds(raw: Manifest) -> bool:
    return bool(raw["spec"].get("nodeName")) and raw["status"]["phase"] not in ("Succeeded", "Failed")


def _devices(raw: Manifest, resources: dict[Key, Resource]) -> int:
    if raw["metadata"]["labels"][names.LABEL_ROLE] != names.Role.HYBRID:
        return 0
    jobs = [one.job for one in resources.values() if one.uid == _owner(raw)]
    return jobs[0].spec.hybrid.accelerators if jobs else 0


def _open_gate(raw: Manifest) -> None:
    gates = raw["spec"].get("schedulingGates", [])
    raw["spec"]["schedulingGates"] = [gate for gate in gates if gate["name"] != names.GANG_GATE]
