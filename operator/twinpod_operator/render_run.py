"""One attempt of a job on one platform: the names, labels, owners, environment and volumes that its manifests share.

Pure. A pod's object is named after the attempt (`x-hybrid-0-a3`), because specs are immutable and a replacement needs
a new name; its hostname keeps the stable name (`x-hybrid-0`), so that addresses and certificates outlive attempts.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from twinpod.api import names
from twinpod.api.patch import PodPatch
from twinpod.api.types import RLJob
from twinpod_operator.pod_patch import patched
from twinpod_operator.render_containers import Manifest, Platform, mount, pod_security

_OF_A_JOB = (names.LABEL_JOB, names.LABEL_JOB_UID, names.LABEL_INSTANCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt of a job on one platform; the names and shapes that all its manifests share."""

    job: RLJob
    platform: Platform
    uid: str
    number: int

    @property
    def name(self) -> str:
        """Name of the job."""
        return self.job.metadata.name

    @property
    def namespace(self) -> str:
        """Namespace of everything."""
        return self.job.metadata.namespace

    @property
    def by_claim(self) -> bool:
        """True when both containers share the accelerators by a DRA claim."""
        return self.job.spec.hybrid.accelerators > 0 and self.job.spec.hybrid.sharing == "Claim"

    @property
    def whole_node(self) -> bool:
        """True when the pod takes all accelerators of a node by the device plug-in."""
        return self.job.spec.hybrid.accelerators > 0 and self.job.spec.hybrid.sharing == "WholeNode"

    @property
    def state_claim(self) -> str:
        """Claim of the master's database."""
        return self.job.spec.storage.state.existing_claim or names.state_claim_name(self.name, self.uid)

    @property
    def snapshots_claim(self) -> str:
        """Claim of snapshots and exports."""
        return self.job.spec.storage.snapshots.existing_claim or names.snapshots_claim_name(self.name, self.uid)

    @property
    def device_template(self) -> str:
        """Template of the pods' device claims; of no use when not `by_claim`."""
        hybrid = self.job.spec.hybrid
        return names.device_template_name(self.name, hybrid.device_class, hybrid.accelerators)

    @property
    def queue(self) -> str:
        """Local queue of Kueue that the job's pods wait in; empty when the job has no queue label."""
        return self.job.metadata.labels.get(names.QUEUE_LABEL, "")

    def metadata(self, name: str, labels: dict[str, str] | None = None, *, owned: bool = True) -> Manifest:
        """Metadata of a child: labels that select it, and the job as its controller."""
        result = child_metadata(name, self.namespace, job=self.name, uid=self.uid, owned=owned)
        result["labels"] |= labels or {}
        return result

    @property
    def labels(self) -> dict[str, str]:
        """Labels of every child, pods of pools included."""
        return job_labels(self.name, self.uid)

    def environment(self, pod: str, *, accelerators: int = 0) -> dict[str, str]:
        """The variables that `twinpod.api.environment` reads, and a home that can be written."""
        master = names.pod_host(names.master_name(self.name), self.name, self.namespace)
        result = {
            "TWINPOD_JOB_NAME": self.name,
            "TWINPOD_NAMESPACE": self.namespace,
            "TWINPOD_JOB_UID": self.uid,
            "TWINPOD_POD": pod,
            "TWINPOD_ADDRESS": names.pod_host(pod, self.name, self.namespace),
            "TWINPOD_MASTER": f"{master}:{names.MASTER_PORT}",
            "TWINPOD_ETCD": ",".join(self.platform.etcd),
            "TWINPOD_GRACE_S": str(self.platform.grace_s),
            "HOME": names.TEMPORARY_FOLDER,
        }
        if not accelerators:
            # One thread a process: many processes share a node's cores here, and OpenMP's waiting threads spin on them.
            result["OMP_NUM_THREADS"] = "1"
        return result


def job_labels(job: str, uid: str) -> dict[str, str]:
    """Labels of every child of a job."""
    return {
        names.LABEL_NAME: names.MANAGED_BY,
        names.LABEL_INSTANCE: job,
        names.LABEL_MANAGED_BY: names.FIELD_MANAGER,
        names.LABEL_JOB: job,
        names.LABEL_JOB_UID: uid,
    }


def child_metadata(name: str, namespace: str, *, job: str, uid: str, owned: bool) -> Manifest:
    """Metadata of a child of the job with that name and uid; `owned`: it goes with the job."""
    result: Manifest = {"name": name, "namespace": namespace, "labels": job_labels(job, uid)}
    if owned:
        result["ownerReferences"] = [owner("RLJob", job, uid)]
    return result


def owner(kind: str, name: str, uid: str) -> Manifest:
    """The reference that makes a resource the controller of a child, so that the child goes with it."""
    reference = {"apiVersion": names.API_VERSION, "kind": kind, "name": name, "uid": uid}
    return {**reference, "controller": True, "blockOwnerDeletion": True}


def common_mounts(run: Attempt, name: str) -> tuple[Manifest, ...]:
    """Configuration, certificates, scratch and, when given, the source of the weights. `name`: the container's."""
    return (
        mount("job", names.JOB_FOLDER, read_only=True),
        mount("tls", names.TLS_FOLDER, read_only=True),
        mount("etcd-tls", names.ETCD_TLS_FOLDER, read_only=True),
        mount("run", names.RUN_FOLDER),
        mount(f"tmp-{name}", names.TEMPORARY_FOLDER),
        *((mount("source", names.SOURCE_FOLDER, read_only=True),) if run.job.spec.model.from_snapshot else ()),
    )


def common_volumes(run: Attempt, containers: tuple[str, ...]) -> list[Manifest]:
    """The volumes of `common_mounts`; secrets can be read by the pod's group alone."""
    start = run.job.spec.model.from_snapshot
    source = (
        {"name": "source", "persistentVolumeClaim": {"claimName": start.claim, "readOnly": True}} if start else None
    )
    return [
        {"name": "job", "configMap": {"name": names.job_config_name(run.name)}},
        {"name": "tls", "secret": {"secretName": names.job_tls_name(run.name), "defaultMode": 0o440}},
        {"name": "etcd-tls", "secret": {"secretName": names.etcd_tls_name(run.name), "defaultMode": 0o440}},
        {"name": "run", "emptyDir": {}},
        *({"name": f"tmp-{name}", "emptyDir": {}} for name in containers),
        *([source] if source else ()),
    ]


def snapshots_volume(run: Attempt) -> Manifest:
    """The snapshots' volume."""
    return {"name": "snapshots", "persistentVolumeClaim": {"claimName": run.snapshots_claim}}


def common_spec(run: Attempt, pod: str, priority_class: str | None) -> Manifest:
    """What every pod has, whatever its role."""
    spec: Manifest = {
        "restartPolicy": "Never",  # the operator owns retries
        "hostname": pod,
        "subdomain": names.service_name(run.name),
        "enableServiceLinks": False,
        "serviceAccountName": names.service_account_name(run.name),
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": run.platform.grace_s,
        "securityContext": pod_security(),
    }
    if run.platform.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in run.platform.image_pull_secrets]
    if priority_class:
        spec["priorityClassName"] = priority_class
    return spec


def device_template(metadata: Manifest, device_class: str, count: int) -> Manifest:
    """The template of a pod's claim: so many devices of a class, in the form that queueing systems can count.

    The claims get labels too, so that the operator sees them. A template cannot be changed: what a pool's claims are
    labelled with must outlive the job that it serves.
    """
    labels = metadata["labels"]
    kept = {key: value for key, value in labels.items() if names.LABEL_POOL not in labels or key not in _OF_A_JOB}
    request = {
        "name": names.DEVICE_CLAIM,
        "exactly": {"deviceClassName": device_class, "allocationMode": "ExactCount", "count": count},
    }
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": metadata,
        "spec": {"metadata": {"labels": kept}, "spec": {"devices": {"requests": [request]}}},
    }


def finished_pod(metadata: Manifest, spec: Manifest, patch: PodPatch | None) -> Manifest:
    """A pod of its metadata and spec: with the person's patch, and the annotations that every pod has."""
    annotations = {names.ANNOTATION_SAFE_TO_EVICT: "false", names.ANNOTATION_KARPENTER: "true"}
    pod: Manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**metadata, "annotations": {**annotations, **metadata.get("annotations", {})}},
        "spec": spec,
    }
    if patch is not None:
        pod = patched(pod, patch)
    pod["metadata"]["annotations"][names.ANNOTATION_TEMPLATE_HASH] = template_hash(pod["spec"])
    return pod


def template_hash(spec: dict[str, Any]) -> str:
    """16 hex digits that change when the pod's template does; the attempt is no part of it."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
