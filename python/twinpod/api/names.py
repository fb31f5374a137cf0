"""Reserved names, all of them: labels, annotations, ports, folders, containers, conditions and their reasons.

Reasons and condition types are stable API: people write alerts on them. Ports and folders are the contract between the
rendered manifests (`twinpod_operator.render`) and the processes (`twinpod.api.environment`).
"""

from __future__ import annotations

import hashlib
from enum import StrEnum

GROUP = "twinpod.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FIELD_MANAGER = "twinpod-operator"
MANAGER_NAME = f"{GROUP}/operator"  # spec.managedBy of a job that the operator looks after
CATEGORY = "rl"

# Labels: on every child of a job, so that one selector finds them all.
LABEL_JOB = f"{GROUP}/job"
LABEL_JOB_UID = f"{GROUP}/job-uid"
LABEL_ROLE = f"{GROUP}/role"  # master, hybrid, rollout, sandbox
LABEL_INDEX = f"{GROUP}/index"  # running number among the pods of a role
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_PUBLISHED = f"{GROUP}/published"  # "true": the pod's host name leads to it; "false": it was given up
LABEL_POOL = f"{GROUP}/pool"
LABEL_POOL_UID = f"{GROUP}/pool-uid"  # on every child of a pool, beside the labels of the job that it serves
LABEL_DEVICE_CLASS = f"{GROUP}/device-class"  # on pods behind our gate: whose turn they wait for
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_NAME = "app.kubernetes.io/name"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_INSTANCE = "app.kubernetes.io/instance"
MANAGED_BY = "twinpod"
GANG_GATE = f"{GROUP}/gang"  # scheduling gate of a job's pods; the operator takes it away when it is the job's turn

# Kueue's plain pods and pod groups, as its reference of labels and annotations names them. Kueue's webhook adds its own
# scheduling gate and the label kueue.x-k8s.io/managed.
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
QUEUE_GROUP_LABEL = "kueue.x-k8s.io/pod-group-name"
QUEUE_GROUP_COUNT = "kueue.x-k8s.io/pod-group-total-count"  # annotation
QUEUE_RETRIABLE = "kueue.x-k8s.io/retriable-in-group"  # annotation; "false" ends a group once its pods have ended
QUEUE_GATE = "kueue.x-k8s.io/admission"  # scheduling gate that Kueue sets and takes away
QUEUE_FINALIZER = "kueue.x-k8s.io/managed"  # on pods of a group until they are replaced or the group has ended

# Annotations
ANNOTATION_TEMPLATE_HASH = f"{GROUP}/template-hash"
ANNOTATION_READER = f"{GROUP}/reader"  # on the job's ConfigMap: what a pod needs to read its volumes (`reading_place`)
ANNOTATION_FAILURES = f"{GROUP}/failures"  # on a pool's pod: how many before it, one after the other, ended soon
ANNOTATION_SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
ANNOTATION_KARPENTER = "karpenter.sh/do-not-disrupt"
ANNOTATION_REVISION = f"{GROUP}/revision"  # digest of what we applied; of a Secret's data for certificates
ANNOTATION_RENEW_AT = f"{GROUP}/renew-at"  # unix seconds; on Secrets with certificates

# Finalizers and marks
QUEUE_STOPPED = "TerminationTarget"  # pod condition of a pod that a queueing system takes back
FINALIZER = f"{GROUP}/etcd"  # until the job's keys in etcd are swept


# The platform's own objects, in the operator's namespace
ETCD_AUTHORITY = f"{MANAGED_BY}-etcd-ca"  # Secret: CA of etcd's server and of its clients, with its key
ETCD_SERVER = f"{MANAGED_BY}-etcd-server"  # Secret: certificate of etcd's members
ETCD_CLIENT = f"{MANAGED_BY}-etcd-client"  # Secret: certificate of etcd's root, for backups and people
LEASE = f"{MANAGED_BY}-operator"

# Limits on names: the longest child's hostname (a label of at most 63) is NAME-hybrid-1023.
MAX_JOB_NAME = 44

# Ports
MASTER_PORT, TRAINING_PORT, INFERENCE_PORT = 7400, 7401, 7402
MASTER_HEALTH_PORT, TRAINING_HEALTH_PORT, INFERENCE_HEALTH_PORT = 7410, 7411, 7412
HEALTH_PATH = "/healthz"
RENDEZVOUS_PORT = 7420
SANDBOX_PORT = 7430
ETCD_PORT, ETCD_PEER_PORT, ETCD_METRICS_PORT = 2379, 2380, 2381
OPERATOR_PORT = 8081  # liveness and metrics

# Folders and files in a container
JOB_FOLDER = "/etc/twinpod/job"
JOB_FILE = f"{JOB_FOLDER}/job.json"
TLS_FOLDER = "/etc/twinpod/tls"
POOL_FOLDER = "/etc/twinpod/pool"  # only in pods of a pool
POOL_FILE = f"{POOL_FOLDER}/pool.json"
ETCD_TLS_FOLDER = "/etc/twinpod/etcd"
STATE_FOLDER = "/var/lib/twinpod/state"
SNAPSHOTS_FOLDER = "/var/lib/twinpod/snapshots"
SOURCE_FOLDER = "/var/lib/twinpod/source"  # another job's snapshots, read-only
KERNELS_FOLDER = "/var/cache/twinpod"  # compiled kernels; only with accelerators
RUN_FOLDER = "/run/twinpod"
SHM_FOLDER = "/dev/shm"
ARENA_FOLDER = f"{SHM_FOLDER}/twinpod"
TEMPORARY_FOLDER = "/tmp"
INPUT_ERROR_FILE = "rank-refused"  # in a pod's run folder: what a rank has against the job's input, one line
MODEL_FOLDER = "model"  # below the run folder

# Container and volume names
CONTAINER_MASTER, CONTAINER_TRAINER, CONTAINER_INFERENCE = "master", "trainer", "inference"
DEVICE_CLAIM = "devices"


class Role(StrEnum):
    """What a pod is for; the value of `LABEL_ROLE`."""

    MASTER = "master"
    HYBRID = "hybrid"
    ROLLOUT = "rollout"
    SANDBOX = "sandbox"


class Condition(StrEnum):
    """Condition types of a job, in the order in which `Ready` looks for the first that fails."""

    ACCEPTED = "Accepted"
    QUOTA_RESERVED = "QuotaReserved"
    PODS_SCHEDULED = "PodsScheduled"
    WORKERS_READY = "WorkersReady"
    WEIGHTS_SYNCED = "WeightsSynced"
    READY = "Ready"
    SUSPENDED = "Suspended"
    DEGRADED = "Degraded"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Reason(StrEnum):
    """Reasons that stand in conditions and events."""

    INVALID_SPEC = "InvalidSpec"
    VALID = "Valid"
    GATED = "SchedulingGated"
    QUEUED = "Queued"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL = "ImagePullBackOff"
    CREATE_CONTAINER = "CreateContainerConfigError"
    QUOTA_REFUSED = "QuotaRefused"
    POD_SECURITY = "PodSecurityRefused"
    ADMISSION_REFUSED = "AdmissionRefused"
    PERMISSION_MISSING = "PermissionMissing"
    CHILD_INVALID = "ChildInvalid"
    NAME_TAKEN = "NameTaken"
    NAMESPACE_TERMINATING = "NamespaceTerminating"
    API_MISSING = "ApiMissing"
    DEVICE_CLASS_MISSING = "DeviceClassMissing"
    CLAIM_UNALLOCATED = "ClaimUnallocated"
    SHARED_MEMORY_TOO_SMALL = "SharedMemoryTooSmall"
    OUT_OF_MEMORY = "OOMKilled"
    ENGINE_FAULT = "EngineFault"
    STORE_UNREACHABLE = "EtcdUnreachable"
    RESTARTING = "Restarting"
    BUDGET_SPENT = "RestartBudgetSpent"
    STARTING = "Starting"
    TRAINING = "Training"
    ROLLING_OUT = "RollingOut"
    SUSPENDED = "Suspended"
    COMPLETED = "Completed"
    ADMITTED = "Admitted"
    NO_QUEUE = "NoQueue"
    SCHEDULED = "AllScheduled"
    PODS_MISSING = "PodsMissing"
    PODS_READY = "PodsReady"
    PODS_NOT_READY = "PodsNotReady"
    SYNCED = "Synced"
    NOT_SYNCED = "NotSynced"
    RUNNING = "Running"
    NOT_SUSPENDED = "NotSuspended"
    HEALTHY = "Healthy"
    UNFINISHED = "Unfinished"
    CRASHED = "ContainerCrashed"
    INPUT_ERROR = "InputError"
    EVICTED = "Evicted"
    PREEMPTED = "Preempted"
    NODE_LOST = "NodeLost"
    POD_DELETED = "PodDeleted"
    TERMINATING = "PodsTerminating"
    DEVICES_NOT_RELEASED = "DevicesNotReleased"
    SCHEDULING_DEADLINE = "SchedulingDeadlineExceeded"
    ACTIVE_DEADLINE = "ActiveDeadlineExceeded"
    BACKING_OFF = "BackingOff"
    REFUSED = "ChildRefused"
    VOLUME = "VolumeNotReady"
    STATE_LOST = "StateLost"
    JOB_MISSING = "JobMissing"
    JOB_FINISHED = "JobFinished"
    JOB_SUSPENDED = "JobSuspended"
    SCALING = "Scaling"
    DELETING = "Deleting"
    SWEEP_LATER = "SweepLater"
    UNSUPPORTED = "NotSupported"


def service_name(job: str) -> str:
    """Headless service of a job; also the subdomain of its pods."""
    return job


def master_name(job: str) -> str:
    """Stable name of the master pod."""
    return f"{job}-master"


def hybrid_name(job: str, index: int) -> str:
    """Stable name of a hybrid pod."""
    return f"{job}-hybrid-{index}"


def rollout_name(pool: str, index: int) -> str:
    """Stable name of a pod of a pool."""
    return f"{pool}-rollout-{index}"


def attempt_name(stable: str, attempt: int) -> str:
    """Name of the Kubernetes object of one attempt of a pod."""
    return f"{stable}-a{attempt}"


def pod_host(stable: str, job: str, namespace: str) -> str:
    """DNS name of a pod; it does not change with the attempt."""
    return f"{stable}.{service_name(job)}.{namespace}.svc"


def job_config_name(job: str) -> str:
    """ConfigMap with job.json."""
    return f"{job}-job"


def job_tls_name(job: str) -> str:
    """Secret with the job's CA and the certificate of its processes."""
    return f"{job}-tls"


def etcd_tls_name(job: str) -> str:
    """Secret with the platform's CA and the job's etcd client certificate."""
    return f"{job}-etcd"


def job_authority_name(job: str) -> str:
    """Secret with the key of the job's CA; mounted by nobody."""
    return f"{job}-ca"


def etcd_user(uid: str) -> str:
    """User and role of a job in the platform's etcd; common name of its client certificate."""
    return f"job-{uid}"


def state_claim_name(job: str, uid: str) -> str:
    """Volume claim of the master's database; by uid, so that a later job of the same name never adopts old state."""
    return f"{job}-state-{uid[:8]}"


def snapshots_claim_name(job: str, uid: str) -> str:
    """Volume claim of snapshots and exports; by uid, as above."""
    return f"{job}-snapshots-{uid[:8]}"


def device_template_name(job: str, device_class: str, count: int) -> str:
    """ResourceClaimTemplate of a job's hybrid pods; its spec cannot be changed, so other devices have another name."""
    return f"{job}-devices-{_devices(device_class, count)}"


def service_account_name(job: str) -> str:
    """ServiceAccount of the job's pods; it may do nothing."""
    return job


def disruption_name(job: str) -> str:
    """PodDisruptionBudget of the master and hybrid pods."""
    return job


def network_policy_name(job: str, role: Role) -> str:
    """NetworkPolicy of the pods of a role."""
    return f"{job}-{role.value}"


def queue_group_name(job: str, uid: str) -> str:
    """Kueue's pod group of a job: the same for all attempts, as replacements join the group of what they replace."""
    return f"{job}-{uid[:8]}"


def pool_config_name(pool: str) -> str:
    """ConfigMap with pool.json."""
    return f"{pool}-rollout"


def pool_device_template_name(pool: str, device_class: str, count: int) -> str:
    """ResourceClaimTemplate of a pool's pods; as above."""
    return f"{pool}-rollout-devices-{_devices(device_class, count)}"


def _devices(device_class: str, count: int) -> str:
    return hashlib.sha256(f"{device_class} {count}".encode()).hexdigest()[:8]


def pool_disruption_name(pool: str) -> str:
    """PodDisruptionBudget of a pool."""
    return f"{pool}-rollout"
