"""What the operator sees and what it may do, as values. No I/O, no decisions.

    API objects ── reading.py ──► views ──┐
    etcd's progress ──────────────────────┼─► Observed ── plan.plan(observed, platform, now) ──► Plan
    refusals of earlier actions ──────────┘

An `Observed` is the whole world of one resource at one moment. It may be stale as far as others write, but it holds
every write of our own that the API server has answered: who observes puts the answers of creates and deletes into what
it has seen before it observes again. Times are unix seconds; 0 means "not yet".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from twinpod.api.types import RLJob, RolloutPool, SandboxPool
from twinpod.records.run import Progress

Manifest = dict[str, Any]
Resource = RLJob | RolloutPool | SandboxPool


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Key:
    """A resource of ours: what the queue holds."""

    kind: str  # RLJob, RolloutPool, SandboxPool
    namespace: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Finding:
    """Why something is not as it should be: a reason of `names.Reason`, and one line for a person."""

    reason: str
    message: str


class Fault(StrEnum):
    """Whose fault the end of a pod was; decides which budget it costs."""

    APPLICATION = "application"  # a container crashed, ran out of memory, could not start
    INFRASTRUCTURE = "infrastructure"  # node lost, eviction, preemption by the scheduler, deleted by somebody
    QUEUE = "queue"  # taken back by a queueing system; costs nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerEnd:
    """A container that has ended, or the newest end of one that was started again."""

    container: str
    sidecar: bool  # a native one, which the kubelet starts again; its end never ends the pod
    code: int
    signal: int  # 0 when it exited by itself
    reason: str  # the kubelet's: OOMKilled, Error, Completed
    message: str  # termination message or the end of the log
    at: float = 0.0  # Unix seconds; 0 when the kubelet did not say


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """What decisions need of a pod, and nothing else."""

    name: str
    uid: str
    role: str  # names.Role
    index: int
    attempt: int
    phase: str  # Pending, Running, Succeeded, Failed, Unknown
    created: float
    node: str = ""  # empty until bound
    gates: tuple[str, ...] = ()  # scheduling gates, ours and others'
    scheduled: bool = False  # bound to a node
    ready: bool = False
    delete_by: float = 0.0  # when the grace period of its deletion ends; 0 while nobody deletes it
    fault: Fault | None = None  # of a pod that ended badly or is being taken away; None otherwise
    reasons: tuple[Finding, ...] = ()  # first the one that a person should read first
    ends: tuple[ContainerEnd, ...] = ()  # containers that have ended for good
    restarts: int = 0  # of native sidecars
    template_hash: str = ""
    device_class: str = ""  # whose scheduling turn it needs; empty without devices
    owner_uid: str = ""  # uid of its controller: the pool of a rollout pod, else the job
    published: bool = True  # its host name leads to it
    job_uid: str = ""
    labels_wrong: tuple[tuple[str, str], ...] = ()  # labels that somebody edited, with the values to put back
    ends_group: bool = False  # marked as the end of its queue's pod group
    ended_at: float = 0.0  # newest end of a container, of a pod that has ended
    failures: int = 0  # of a pool's pod: how many before it, one after the other, ended soon

    @property
    def deleting(self) -> bool:
        """True from the moment somebody asked for its deletion."""
        return self.delete_by > 0

    @property
    def ended(self) -> bool:
        """True when no container of it can run any more."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def gated(self) -> bool:
        """True when a scheduling gate holds it back."""
        return bool(self.gates)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildView:
    """A child that is no pod."""

    kind: str
    name: str
    uid: str
    revision: str = ""  # annotation names.ANNOTATION_REVISION: digest of the manifest that we applied
    digest: str = ""  # reading.owned_digest of it as it stands
    applied: str = ""  # owned_digest of the answer to our own newest apply of `revision`; empty when not remembered
    deleting: bool = False
    renew_at: float = 0.0  # annotation names.ANNOTATION_RENEW_AT of a Secret with certificates; 0 for others
    owner_uid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClaimView:
    """A ResourceClaim of a pod. Its devices are free only when it is gone or no longer allocated."""

    name: str
    allocated: bool
    pod_uid: str = ""  # of the pod that it was made for
    created: float = 0.0


class Reach(StrEnum):
    """What came of the look into etcd."""

    READ = "read"  # the record, or none as the master has written none yet
    UNREACHABLE = "unreachable"
    NOT_LOOKED = "not looked"  # nothing to look for, as no pod runs


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressView:
    """What the master wrote to etcd, with when it was read."""

    reach: Reach
    record: Progress | None = None
    read_at: float = 0.0
    message: str = ""  # why unreachable


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Contender:
    """A job that has pods behind our scheduling gate, or pods let through and not bound yet."""

    since: float  # creation of its newest pod: a set that was made again stands in line again
    key: Key
    device_class: str
    holding: bool  # some of its pods were let through and are not bound


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLink:
    """The job that a pool serves, as the pool sees it."""

    name: str
    uid: str = ""  # empty: no such job
    job: RLJob | None = None  # None when it does not exist or is not valid
    suspended: bool = False
    finished: bool = False
    deleting: bool = False
    weight_version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The world of one resource at one moment."""

    key: Key
    uid: str
    generation: int
    raw: Manifest  # metadata, spec and status as the API server has them
    resource: Resource | None  # None when `problems` say why it is not valid
    problems: tuple[str, ...] = ()
    deleting_since: float = 0.0
    finalizers: tuple[str, ...] = ()
    status: Manifest | None = None  # raw["status"]
    created: float = 0.0
    pods: tuple[PodView, ...] = ()  # by label of our uid; sorted by name
    children: tuple[ChildView, ...] = ()
    claims: tuple[DeviceClaimView, ...] = ()
    refusals: tuple[Finding, ...] = ()  # why the API server refused our newest creates and applies
    missing_device_class: bool = False  # the device class of the spec, or the DRA API, does not exist
    progress: ProgressView = ProgressView(reach=Reach.NOT_LOOKED)
    turn: Key | None = None  # who may have pods let through now (gang.turn over all jobs of the device class)
    swept: bool = False  # the prefix in etcd is gone
    link: JobLink | None = None  # of a pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """POST a pod. 'Already exists' is no error when it is ours: the next observation shows it."""

    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Prove:
    """POST a pod as a dry run; no pod is created while that is refused. For pods that a person's patch changed."""

    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """Server-side apply of a child that is no pod, forced, as our field manager; `uid`: it must still be that one."""

    manifest: Manifest
    uid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete with the uid as precondition. Never by force; 'not found' is no error."""

    kind: str
    name: str
    uid: str
    grace_s: int | None = None  # the object's own when None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ungate:
    """Take our scheduling gate off a pod (others' gates stay)."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Set one annotation of a pod that lives already, by merge patch; 'not found' is no error."""

    name: str
    uid: str
    annotation: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """Put labels of a pod back, by merge patch; 'not found' is no error."""

    name: str
    uid: str
    labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Delete the keys of a job that is gone from etcd, and its etcd user; repeated safely."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFinalizers:
    """Write metadata.finalizers, by JSON merge patch with the resource version observed."""

    finalizers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit:
    """An event on our resource, for a person."""

    type: str  # Normal, Warning
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueCertificates:
    """Make or renew a Secret: the job's authority and its processes' certificate, or the job's etcd client certificate.

    The manifest has metadata alone. Who acts fills `data` and two annotations: names.ANNOTATION_REVISION with
    `reading.data_digest(data)`, so that an edited Secret is seen, and names.ANNOTATION_RENEW_AT, unix seconds at two
    thirds of the certificates' life.
    """

    manifest: Manifest
    uid: str  # of the Secret that is renewed; empty when there is none
    etcd: bool  # from the platform's authority, for etcd; else from the job's own
    hosts: tuple[str, ...]  # DNS names of the job's processes


Action = Create | Prove | Apply | Delete | Ungate | Mark | Label | Sweep | SetFinalizers | Emit | IssueCertificates


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do now, in this order; then one patch of status when it differs; then wake again.

    `status` is None when it must not be written (the resource is going away). Actions are all safe to repeat. When an
    action is refused for good (quota, admission, invalid) the rest is tried all the same; the refusal is observed next.
    """

    actions: tuple[Action, ...] = ()
    status: Manifest | None = None
    wake_after_s: float | None = None  # None: an event will wake it, or the resync
