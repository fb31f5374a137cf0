"""From a RolloutPool and the job that it serves to plain manifests. Pure; the operator applies, local mode executes.

    render_pool ─┬─ ConfigMap              pool.json: the pool with its defaults filled in
                 ├─ PodDisruptionBudget    a drain takes half of the pods at a time
                 ├─ ResourceClaimTemplate  only with accelerators by claim
                 └─ Pod POOL-rollout-I-aN  one a replica

A pool's pods mount the job's ConfigMap, Secrets and snapshots and carry the job's labels, so the job's headless
Service names them; the pool owns them, so they go with it. They have one plain container, the inference half, whose
engine stays up (`api.pod_view` reads pool.json). Each pod has its own attempt: one that is lost is replaced without the
others, and none waits behind our scheduling gate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from twinpod.api import names
from twinpod.api.types import RLJob, RolloutPool
from twinpod_operator.render_containers import (
    GPU_RESOURCE,
    Manifest,
    Platform,
    Shape,
    container,
    memory_volume,
    mount,
    tolerations,
)
from twinpod_operator.render_devices import kernel_volumes
from twinpod_operator.render_pods import inference_shape, pod_labels
from twinpod_operator.render_run import (
    Attempt,
    common_spec,
    common_volumes,
    device_template,
    finished_pod,
    owner,
    snapshots_volume,
)

__all__ = ["PoolRun", "pool_document", "render_pool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRun:
    """A pool beside the job that it serves."""

    pool: RolloutPool
    uid: str  # of the pool
    run: Attempt  # of the job; its number says nothing here

    @property
    def name(self) -> str:
        """Name of the pool."""
        return self.pool.metadata.name

    @property
    def by_claim(self) -> bool:
        """True when each pod has a DRA claim."""
        return self.pool.spec.accelerators > 0 and self.pool.spec.sharing == "Claim"

    @property
    def by_plugin(self) -> bool:
        """True when accelerators are asked for as a resource of the device plug-in."""
        return self.pool.spec.accelerators > 0 and self.pool.spec.sharing == "WholeNode"

    @property
    def device_template(self) -> str:
        """Template of the pods' device claims; of no use when not `by_claim`."""
        return names.pool_device_template_name(self.name, self.pool.spec.device_class, self.pool.spec.accelerators)

    @property
    def queue(self) -> str:
        """Local queue of Kueue of each pod: the pool's, or else the job's."""
        return self.pool.metadata.labels.get(names.QUEUE_LABEL, self.run.queue)

    @property
    def selector(self) -> dict[str, str]:
        """Labels that the pool's children have and nothing else."""
        return {names.LABEL_POOL: self.name, names.LABEL_POOL_UID: self.uid}

    def metadata(self, name: str, labels: dict[str, str] | None = None) -> Manifest:
        """Metadata of a child: the labels of the job and of the pool, and the pool as its controller."""
        result = self.run.metadata(name, {**self.selector, **(labels or {})}, owned=False)
        result["ownerReferences"] = [owner("RolloutPool", self.name, self.uid)]
        return result


def render_pool(
    pool: RolloutPool,
    job: RLJob,
    *,
    platform: Platform,
    job_uid: str,
    pool_uid: str,
    attempts: Mapping[int, int] | None = None,
) -> list[Manifest]:
    """Every manifest of a pool, in the order in which they are to be created.

    `attempts`: the pods that are wanted, by index, with the attempt number of each; all `replicas` with 0 when None.
    """
    own = PoolRun(pool=pool, uid=pool_uid, run=Attempt(job=job, platform=platform, uid=job_uid, number=0))
    numbers = dict.fromkeys(range(pool.spec.replicas), 0) if attempts is None else attempts
    pods = [_pod(own, index, number) for index, number in sorted(numbers.items())]
    return [_config(own), _disruption(own), *_device_template(own), *pods]


def pool_document(pool: RolloutPool, job: RLJob) -> str:
    """Content of pool.json: the pool with its defaults, those that come from the job included."""
    whole = pool.as_manifest()
    engine = whole["spec"]["inference"]
    engine["maxRunning"] = engine.get("maxRunning") or job.spec.hybrid.inference.max_running
    document = {
        "apiVersion": whole["apiVersion"],
        "kind": whole["kind"],
        "metadata": {"name": pool.metadata.name, "namespace": pool.metadata.namespace},
        # replicas is not there: a scaled pool must not change a file that its pods read
        "spec": {key: value for key, value in whole["spec"].items() if key != "replicas"},
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _config(own: PoolRun) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": own.metadata(names.pool_config_name(own.name)),
        "data": {"pool.json": pool_document(own.pool, own.run.job)},
    }


def _disruption(own: PoolRun) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": own.metadata(names.pool_disruption_name(own.name)),
        "spec": {
            "maxUnavailable": "50%",  # rounded up: a pool of one pod can be drained
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": own.selector},
        },
    }


def _device_template(own: PoolRun) -> list[Manifest]:
    if not own.by_claim:
        return []
    spec = own.pool.spec
    return [device_template(own.metadata(own.device_template), spec.device_class, spec.accelerators)]


def _pod(own: PoolRun, index: int, attempt: int) -> Manifest:
    pod, pool, run = names.rollout_name(own.name, index), own.pool.spec, own.run
    spec = {
        **common_spec(run, pod, pool.priority_class_name),
        "tolerations": tolerations(accelerators=pool.accelerators > 0),
        "containers": [container(_inference(own, pod), run.platform)],
        "volumes": [
            *common_volumes(run, (names.CONTAINER_INFERENCE,)),
            {"name": "pool", "configMap": {"name": names.pool_config_name(own.name)}},
            memory_volume(pool.shared_memory or run.job.spec.hybrid.shared_memory),
            *kernel_volumes(pool.kernel_cache, pool.accelerators),
            snapshots_volume(run),
        ],
    }
    if own.by_claim:
        spec["resourceClaims"] = [{"name": names.DEVICE_CLAIM, "resourceClaimTemplateName": own.device_template}]
    labels = pod_labels(names.Role.ROLLOUT, index, attempt)
    if own.queue:
        labels[names.QUEUE_LABEL] = own.queue  # alone: each pod is admitted by itself
    return finished_pod(own.metadata(names.attempt_name(pod, attempt), labels), spec, pool.pod_patch)


def _inference(own: PoolRun, pod: str) -> Shape:
    pool = own.pool.spec
    shape = inference_shape(
        own.run,
        pool.inference,
        environment={
            **own.run.environment(pod, accelerators=pool.accelerators),
            "TWINPOD_POOL_FILE": names.POOL_FILE,
        },
        shared_memory=pool.shared_memory or own.run.job.spec.hybrid.shared_memory or "",
        accelerators=pool.accelerators,
        mounts=(mount("pool", names.POOL_FOLDER, read_only=True),),
    )
    if own.by_claim:
        shape.resources["claims"] = [{"name": names.DEVICE_CLAIM}]
    if own.by_plugin:
        shape.resources.setdefault("limits", {})[GPU_RESOURCE] = str(pool.accelerators)
    return shape
