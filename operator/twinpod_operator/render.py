"""From an RLJob to the plain manifests of one attempt of it. Pure; the operator applies them, local mode executes them.

    render_job ─┬─ ConfigMap            job.json: the job with its defaults filled in; the master's image, for readers
                ├─ Service              headless; names of pods before they are ready
                ├─ ServiceAccount       of the pods; it may do nothing, and no token is mounted
                ├─ NetworkPolicy        one a role, from `network.TABLE`
                ├─ PodDisruptionBudget  a drain waits until the job is suspended
                ├─ PersistentVolumeClaim  state, snapshots (unless existing)
                ├─ ResourceClaimTemplate  only with accelerators shared by claim
                ├─ Pod NAME-master-aN
                └─ Pod NAME-hybrid-I-aN   one a replica

The Secrets with certificates (`names.job_tls_name`, `names.etcd_tls_name`) are named here and made by whoever executes.
"""

from __future__ import annotations

import json
from typing import Any

from twinpod.api import names
from twinpod.api.reading_place import place_of, to_text
from twinpod.api.types import RLJob
from twinpod_operator.network import job_policies
from twinpod_operator.render_containers import Manifest, Platform
from twinpod_operator.render_pods import hybrid_pod, master_pod
from twinpod_operator.render_run import Attempt, device_template

__all__ = ["Attempt", "Manifest", "Platform", "job_document", "render_around", "render_job", "render_pods"]


def render_job(job: RLJob, *, platform: Platform, uid: str, attempt: int) -> list[Manifest]:
    """Every manifest of one attempt, in the order in which they are to be created."""
    around = render_around(job, platform=platform, uid=uid)
    return [*around, *render_pods(job, platform=platform, uid=uid, attempt=attempt)]


def render_around(job: RLJob, *, platform: Platform, uid: str) -> list[Manifest]:
    """What is no pod; the same for all attempts."""
    run = Attempt(job=job, platform=platform, uid=uid, number=1)
    around = [_config(run, master_pod(run)), _service(run), _account(run), *job_policies(run), _disruption(run)]
    return [*around, *_claims(run), *_device_template(run)]


def render_pods(job: RLJob, *, platform: Platform, uid: str, attempt: int) -> list[Manifest]:
    """The pods of one attempt, the master first."""
    run = Attempt(job=job, platform=platform, uid=uid, number=attempt)
    return [master_pod(run), *(hybrid_pod(run, index) for index in range(job.spec.hybrid.replicas))]


def job_document(job: RLJob) -> str:
    """Content of job.json: the resource with defaults, without what only a server writes."""
    whole = job.as_manifest()
    document = {
        "apiVersion": whole["apiVersion"],
        "kind": whole["kind"],
        "metadata": {"name": job.metadata.name, "namespace": job.metadata.namespace},
        "spec": whole["spec"],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _config(run: Attempt, master: Manifest) -> Manifest:
    """It outlives the pods, so it also says with what image their volumes can be read."""
    metadata = run.metadata(names.job_config_name(run.name))
    metadata["annotations"] = {names.ANNOTATION_READER: to_text(place_of(master))}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {"job.json": job_document(run.job)},
    }


def _service(run: Attempt) -> Manifest:
    ports = {"master": names.MASTER_PORT, "training": names.TRAINING_PORT, "inference": names.INFERENCE_PORT}
    if run.job.spec.hybrid.replicas > 1:
        ports["rendezvous"] = names.RENDEZVOUS_PORT
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": run.metadata(names.service_name(run.name)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # rendezvous happens before readiness
            "selector": {names.LABEL_JOB: run.name, names.LABEL_JOB_UID: run.uid, names.LABEL_PUBLISHED: "true"},
            "ports": [
                {"name": name, "port": port, "targetPort": port, "protocol": "TCP"} for name, port in ports.items()
            ],
        },
    }


def _account(run: Attempt) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": run.metadata(names.service_account_name(run.name)),
        "automountServiceAccountToken": False,
    }


def _disruption(run: Attempt) -> Manifest:
    """Hybrid pods have no scale subresource, so the number is a whole one: every pod of the job is needed."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": run.metadata(names.disruption_name(run.name)),
        "spec": {
            "minAvailable": 1 + run.job.spec.hybrid.replicas,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {
                "matchLabels": {names.LABEL_JOB_UID: run.uid},
                "matchExpressions": [
                    {
                        "key": names.LABEL_ROLE,
                        "operator": "In",
                        "values": [names.Role.HYBRID.value, names.Role.MASTER.value],
                    }
                ],
            },
        },
    }


def _claims(run: Attempt) -> list[Manifest]:
    """The claims that are made for the job; with `whenDeleted: Retain` nothing owns them."""
    storage = run.job.spec.storage
    wanted: list[tuple[str, str, str, str | None]] = []
    if storage.state.existing_claim is None:
        state = storage.state
        wanted.append((run.state_claim, "ReadWriteOnce", state.size, state.storage_class_name))
    if storage.snapshots.existing_claim is None:
        snapshots = storage.snapshots
        wanted.append((run.snapshots_claim, "ReadWriteMany", snapshots.size, snapshots.storage_class_name))
    return [_claim(run, *claim) for claim in wanted]


def _claim(run: Attempt, name: str, mode: str, size: str, storage_class: str | None) -> Manifest:
    spec: dict[str, Any] = {"accessModes": [mode], "resources": {"requests": {"storage": size}}}
    if chosen := storage_class or run.platform.storage_class:
        spec["storageClassName"] = chosen
    owned = run.job.spec.storage.when_deleted == "Delete"
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": run.metadata(name, owned=owned),
        "spec": spec,
    }


def _device_template(run: Attempt) -> list[Manifest]:
    hybrid = run.job.spec.hybrid
    if not run.by_claim:
        return []
    return [device_template(run.metadata(run.device_template), hybrid.device_class, hybrid.accelerators)]
