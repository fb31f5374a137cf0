"""From the job to the plan: the operator's own renderer, read by local mode. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from twinpod.api import names
from twinpod.api.types import RLJob
from twinpod.errors import InputError
from twinpod.local.etcd_server import CLIENT_PORT
from twinpod.local.manifest import read_pod
from twinpod.local.plan import Pod
from twinpod_operator.render import Attempt, Platform, render_job

ETCD_NAME = "etcd.twinpod.local"
IMAGE = "this checkout"
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
    platform = Platform(
        master_image=IMAGE,
        trainer_image=IMAGE,
        inference_image=IMAGE,
        etcd=(f"{ETCD_NAME}:{CLIENT_PORT}",),
        grace_s=GRACE_S,
    )
    pods, configs = [], {}
    for manifest in render_job(job, platform=platform, uid=uid, attempt=0):
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if kind == "Pod":
            pods.append(read_pod(manifest))
        elif kind == "ConfigMap":
            configs[name] = dict(manifest["data"])
        elif kind not in MEANINGLESS_KINDS:
            raise InputError(f"{kind} {name} is not honoured by local mode", mend="run the job on Kubernetes")
    run = Attempt(job=job, platform=platform, uid=uid, number=0)
    return Rendered(
        pods=tuple(pods),
        master=names.master_name(run.name),
        configs=configs,
        job_secret=names.job_tls_name(run.name),
        etcd_secret=names.etcd_tls_name(run.name),
        state_claim=run.state_claim,
        snapshots_claim=run.snapshots_claim,
    )


def _refuse_what_needs_a_cluster(job: RLJob) -> None:
    storage = job.spec.storage
    refused = (
        ("spec.suspend", job.spec.suspend, "a suspended job does not run", "set it to false"),
        (
            "spec.storage.snapshots.url",
            storage.snapshots.url is not None,
            "local mode keeps snapshots in the run folder",
            "take it out, and copy the folder afterwards",
        ),
        (
            "spec.storage.state.existingClaim",
            storage.state.existing_claim is not None,
            "there are no volume claims on one machine",
            "take it out: state is in the run folder",
        ),
        (
            "spec.model.fromSnapshot",
            job.spec.model.from_snapshot is not None,
            "there are no volume claims on one machine",
            "name the folder of the other run instead: model.from, for example runs/other/snapshots/export",
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
