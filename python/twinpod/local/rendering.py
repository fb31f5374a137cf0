"""From the job to the plan: the operator's own renderer, read by local mode. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twinpod.api import names
from twinpod.api.types import RLJob, RolloutPool
from twinpod.errors import InputError
from twinpod.local.etcd_server import CLIENT_PORT
from twinpod.local.manifest import read_pod
from twinpod.local.plan import Pod
from twinpod_operator.render import Attempt, Manifest, Platform, render_job
from twinpod_operator.render_pool import render_pool

ETCD_NAME = "etcd.twinpod.local"
IMAGE = "this checkout"
MOST_POOL_PODS = 16  # of one pool
GRACE_S = 20  # a person waits at the terminal; nothing here needs more
# Kinds that mean nothing on one machine, each with its reason.
MEANINGLESS_KINDS = {
    "Service": "names are in the hosts file",
    "PersistentVolumeClaim": "claims are folders of the run",
    "ServiceAccount": "there is no Kubernetes API to be granted",
    "NetworkPolicy": "every process is on this machine's loopback",
    "PodDisruptionBudget": "nobody drains one machine",
    "ResourceClaimTemplate": "processes see the accelerators of the machine",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """What the operator would create for a job, as far as one machine has it."""

    pods: tuple[Pod, ...]
    master: str  # name of the master's pod
    configs: Mapping[str, Mapping[str, str]]  # ConfigMap → file → text
    job_secret: str
    etcd_secret: str
    state_claim: str
    snapshots_claim: str

    def claims(self, state: Path, snapshots: Path) -> dict[str, Path]:
        """The folder of each volume claim."""
        return {self.state_claim: state, self.snapshots_claim: snapshots}


def render_locally(job: RLJob, uid: str) -> Rendered:
    """The pods and configuration of the job; InputError for what local mode does not honour."""
    _refuse_what_needs_a_cluster(job)
    platform = _platform()
    pods, configs = _read(render_job(job, platform=platform, uid=uid, attempt=0))
    run = Attempt(job=job, platform=platform, uid=uid, number=0)
    return Rendered(
        pods=pods,
        master=names.master_name(run.name),
        configs=configs,
        job_secret=names.job_tls_name(run.name),
        etcd_secret=names.etcd_tls_name(run.name),
        state_claim=run.state_claim,
        snapshots_claim=run.snapshots_claim,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPool:
    """What the operator would create for a RolloutPool of `MOST_POOL_PODS` pods; the first `replicas` of them run."""

    name: str
    replicas: int
    pods: tuple[Pod, ...]
    configs: Mapping[str, Mapping[str, str]]


def render_pool_locally(pool: RolloutPool, job: RLJob, uid: str) -> RenderedPool:
    """The pool's pods, as many as local mode may ever run: their addresses and names must be known from the beginning.

    InputError when more are asked for.
    """
    name, replicas = pool.metadata.name, pool.spec.replicas
    if replicas > MOST_POOL_PODS:
        raise InputError(
            f"is {replicas}; local mode runs at most {MOST_POOL_PODS} pods of a pool",
            where=f"RolloutPool {name}: spec.replicas",
            mend="lower it, or run the job on Kubernetes",
        )
    all_of_it = pool.model_copy(update={"spec": pool.spec.model_copy(update={"replicas": MOST_POOL_PODS})})
    pool_uid = str(uuid.uuid5(uuid.UUID(uid), name))
    manifests = render_pool(all_of_it, job, platform=_platform(), job_uid=uid, pool_uid=pool_uid)
    pods, configs = _read(manifests)
    return RenderedPool(name=name, replicas=replicas, pods=pods, configs=configs)


def _platform() -> Platform:
    return Platform(
        master_image=IMAGE,
        trainer_image=IMAGE,
        inference_image=IMAGE,
        etcd=(f"{ETCD_NAME}:{CLIENT_PORT}",),
        grace_s=GRACE_S,
    )


def _read(manifests: Sequence[Manifest]) -> tuple[tuple[Pod, ...], dict[str, dict[str, str]]]:
    """Pods and ConfigMaps; what means nothing here is left out, anything else refused."""
    pods, configs = [], {}
    for manifest in manifests:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if kind == "Pod":
            pods.append(read_pod(manifest))
        elif kind == "ConfigMap":
            configs[name] = dict(manifest["data"])
        elif kind not in MEANINGLESS_KINDS:
            raise InputError(f"{kind} {name} is not honoured by local mode", mend="run the job on Kubernetes")
    return tuple(pods), configs


def _refuse_what_needs_a_cluster(job: RLJob) -> None:
    storage = job.spec.storage
    refused = (
        ("spec.suspend", job.spec.suspend, "a suspended job does not run", "set it to false"),
        (
            "spec.storage.state.existingClaim",
            storage.state.existing_claim is not None,
            "there are no volume claims on one machine",
            "take it out: state is in the run folder",
        ),
        (
            "spec.storage.snapshots.existingClaim",
            storage.snapshots.existing_claim is not None,
            "there are no volume claims on one machine",
            "take it out: snapshots are in the run folder",
        ),
    )
    for where, found, what, mend in refused:
        if found:
            raise InputError(what, where=where, mend=mend)
