"""The pods of a job: master and hybrid. Pure.

A pod's object is named after the attempt (`x-hybrid-0-a3`), because specs are immutable and a replacement needs a new
name; its hostname keeps the stable name (`x-hybrid-0`), so that addresses and certificates outlive attempts.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from twinpod.api import names
from twinpod.api.types import RLJob
from twinpod_operator.render_containers import (
    GPU_RESOURCE,
    Manifest,
    Platform,
    Port,
    Shape,
    container,
    mount,
    pod_security,
    resources,
    tolerations,
)


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
        """Claim of snapshots and exports; of no use with a URL."""
        return self.job.spec.storage.snapshots.existing_claim or names.snapshots_claim_name(self.name, self.uid)

    def metadata(self, name: str, labels: dict[str, str] | None = None, *, owned: bool = True) -> Manifest:
        """Metadata of a child: labels that select it, and the job as its controller."""
        result: Manifest = {
            "name": name,
            "namespace": self.namespace,
            "labels": {
                names.LABEL_NAME: names.MANAGED_BY,
                names.LABEL_INSTANCE: self.name,
                names.LABEL_MANAGED_BY: names.FIELD_MANAGER,
                names.LABEL_JOB: self.name,
                names.LABEL_JOB_UID: self.uid,
                **(labels or {}),
            },
        }
        if owned:
            owner = {"apiVersion": names.API_VERSION, "kind": "RLJob", "name": self.name, "uid": self.uid}
            result["ownerReferences"] = [{**owner, "controller": True, "blockOwnerDeletion": True}]
        return result

    def environment(self, pod: str) -> dict[str, str]:
        """The variables that `twinpod.api.environment` reads, and a home that can be written."""
        master = names.pod_host(names.master_name(self.name), self.name, self.namespace)
        return {
            "TWINPOD_JOB_NAME": self.name,
            "TWINPOD_NAMESPACE": self.namespace,
            "TWINPOD_JOB_UID": self.uid,
            "TWINPOD_POD": pod,
            "TWINPOD_ADDRESS": names.pod_host(pod, self.name, self.namespace),
            "TWINPOD_MASTER": f"{master}:{names.MASTER_PORT}",
            "TWINPOD_ETCD": ",".join(self.platform.etcd),
            "HOME": names.TEMPORARY_FOLDER,
            # One thread a process: many processes share a node's cores here, and OpenMP's waiting threads spin on them.
            "OMP_NUM_THREADS": "1",
        }


def master_pod(run: Attempt) -> Manifest:
    """The conductor. It needs no accelerator."""
    pod = names.master_name(run.name)
    shape = Shape(
        name=names.CONTAINER_MASTER,
        image=run.platform.master_image,
        command=("python", "-m", "twinpod.master"),
        args=(),
        ports=(
            Port(name="grpc-master", number=names.MASTER_PORT),
            Port(name="health-master", number=names.MASTER_HEALTH_PORT),
        ),
        health=names.MASTER_HEALTH_PORT,
        mounts=(
            *_common_mounts(names.CONTAINER_MASTER),
            mount("state", names.STATE_FOLDER),
            mount("snapshots", names.SNAPSHOTS_FOLDER),
        ),
        environment=run.environment(pod),
        resources={"requests": {"cpu": "250m", "memory": "512Mi"}},
    )
    spec = {
        **_common_spec(run, pod),
        "tolerations": tolerations(accelerators=False),
        "containers": [container(shape, run.platform)],
        "volumes": [
            *_common_volumes(run, (names.CONTAINER_MASTER,)),
            {"name": "state", "persistentVolumeClaim": {"claimName": run.state_claim}},
            _snapshots(run),
        ],
    }
    return _pod(run, pod, names.Role.MASTER, 0, spec)


def hybrid_pod(run: Attempt, index: int) -> Manifest:
    """Trainer and engine on the same accelerators: the engine's half first, as a native sidecar."""
    pod, hybrid = names.hybrid_name(run.name, index), run.job.spec.hybrid
    spec = {
        **_common_spec(run, pod),
        "tolerations": tolerations(accelerators=hybrid.accelerators > 0),
        "initContainers": [{**container(_inference(run, pod), run.platform), "restartPolicy": "Always"}],
        "containers": [container(_trainer(run, pod), run.platform)],
        "volumes": [
            *_common_volumes(run, (names.CONTAINER_TRAINER, names.CONTAINER_INFERENCE)),
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": hybrid.shared_memory}},
            _snapshots(run),
        ],
    }
    if run.by_claim:
        template = names.device_template_name(run.name)
        spec["resourceClaims"] = [{"name": names.DEVICE_CLAIM, "resourceClaimTemplateName": template}]
    if run.whole_node:
        spec["runtimeClassName"] = hybrid.runtime_class or "nvidia"
    return _pod(run, pod, names.Role.HYBRID, index, spec)


def _trainer(run: Attempt, pod: str) -> Shape:
    hybrid = run.job.spec.hybrid
    wanted = resources(hybrid.trainer.resources, hybrid.shared_memory)
    if run.by_claim:
        wanted["claims"] = [{"name": names.DEVICE_CLAIM}]
    if run.whole_node:
        wanted.setdefault("limits", {})[GPU_RESOURCE] = str(hybrid.accelerators)
    return Shape(
        name=names.CONTAINER_TRAINER,
        image=hybrid.trainer.image or run.platform.trainer_image,
        command=("python", "-m", "twinpod_sidecar"),
        args=("training",),
        ports=(
            Port(name="grpc-training", number=names.TRAINING_PORT),
            Port(name="health-training", number=names.TRAINING_HEALTH_PORT),
            *((Port(name="rendezvous", number=names.RENDEZVOUS_PORT),) if hybrid.replicas > 1 else ()),
        ),
        health=names.TRAINING_HEALTH_PORT,
        mounts=(
            *_common_mounts(names.CONTAINER_TRAINER),
            mount("shm", names.SHM_FOLDER),
            mount("snapshots", names.SNAPSHOTS_FOLDER),
        ),
        environment=run.environment(pod),
        resources=wanted,
    )


def _inference(run: Attempt, pod: str) -> Shape:
    hybrid = run.job.spec.hybrid
    environment, wanted = run.environment(pod), resources(hybrid.inference.resources)
    if run.by_claim:
        wanted["claims"] = [{"name": names.DEVICE_CLAIM}]
    if run.whole_node:
        environment["NVIDIA_VISIBLE_DEVICES"] = "all"
    return Shape(
        name=names.CONTAINER_INFERENCE,
        image=hybrid.inference.image or run.platform.inference_image,
        command=("python", "-m", "twinpod_sidecar"),
        args=("inference",),
        ports=(
            Port(name="grpc-inference", number=names.INFERENCE_PORT),
            Port(name="health-infer", number=names.INFERENCE_HEALTH_PORT),
        ),
        health=names.INFERENCE_HEALTH_PORT,
        mounts=(
            *_common_mounts(names.CONTAINER_INFERENCE),
            mount("shm", names.SHM_FOLDER),
            mount("snapshots", names.SNAPSHOTS_FOLDER, read_only=True),
        ),
        environment=environment,
        resources=wanted,
    )


def _common_mounts(name: str) -> tuple[Manifest, ...]:
    return (
        mount("job", names.JOB_FOLDER, read_only=True),
        mount("tls", names.TLS_FOLDER, read_only=True),
        mount("etcd-tls", names.ETCD_TLS_FOLDER, read_only=True),
        mount("run", names.RUN_FOLDER),
        mount(f"tmp-{name}", names.TEMPORARY_FOLDER),
    )


def _common_volumes(run: Attempt, containers: tuple[str, ...]) -> list[Manifest]:
    """Configuration, certificates, scratch; secrets can be read by the pod's group alone."""
    return [
        {"name": "job", "configMap": {"name": names.job_config_name(run.name)}},
        {"name": "tls", "secret": {"secretName": names.job_tls_name(run.name), "defaultMode": 0o440}},
        {"name": "etcd-tls", "secret": {"secretName": names.etcd_tls_name(run.name), "defaultMode": 0o440}},
        {"name": "run", "emptyDir": {}},
        *({"name": f"tmp-{name}", "emptyDir": {}} for name in containers),
    ]


def _snapshots(run: Attempt) -> Manifest:
    """The snapshots' volume; with a URL it is scratch from which files are uploaded."""
    if run.job.spec.storage.snapshots.url is not None:
        return {"name": "snapshots", "emptyDir": {}}
    return {"name": "snapshots", "persistentVolumeClaim": {"claimName": run.snapshots_claim}}


def _common_spec(run: Attempt, pod: str) -> Manifest:
    spec: Manifest = {
        "restartPolicy": "Never",  # the operator owns retries
        "hostname": pod,
        "subdomain": names.service_name(run.name),
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": run.platform.grace_s,
        "securityContext": pod_security(),
    }
    if run.platform.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in run.platform.image_pull_secrets]
    if run.job.spec.hybrid.priority_class_name:
        spec["priorityClassName"] = run.job.spec.hybrid.priority_class_name
    return spec


def _pod(run: Attempt, stable: str, role: names.Role, index: int, spec: Manifest) -> Manifest:
    labels = {
        names.LABEL_COMPONENT: role.value,
        names.LABEL_ROLE: role.value,
        names.LABEL_INDEX: str(index),
        names.LABEL_ATTEMPT: str(run.number),
    }
    metadata = run.metadata(names.attempt_name(stable, run.number), labels)
    metadata["annotations"] = {
        names.ANNOTATION_SAFE_TO_EVICT: "false",
        names.ANNOTATION_KARPENTER: "true",
        names.ANNOTATION_TEMPLATE_HASH: template_hash(spec),
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def template_hash(spec: dict[str, Any]) -> str:
    """16 hex digits that change when the pod's template does; the attempt is no part of it."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
