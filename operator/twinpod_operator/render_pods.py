"""The pods of a job: master and hybrid; and the inference container, which the pods of a pool have too. Pure."""

from __future__ import annotations

from twinpod.api import names
from twinpod.api.pods import InferenceSpec
from twinpod_operator.render_containers import (
    GPU_RESOURCE,
    Manifest,
    Port,
    Shape,
    container,
    memory_volume,
    mount,
    resources,
    tolerations,
)
from twinpod_operator.render_devices import engine_variables, kernel_mounts, kernel_volumes, trainer_variables
from twinpod_operator.render_run import (
    Attempt,
    common_mounts,
    common_spec,
    common_volumes,
    finished_pod,
    snapshots_volume,
)


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
            *common_mounts(run, names.CONTAINER_MASTER),
            mount("state", names.STATE_FOLDER),
            mount("snapshots", names.SNAPSHOTS_FOLDER),
        ),
        environment=run.environment(pod),
        resources=resources(run.job.spec.master.resources),
    )
    spec = {
        **common_spec(run, pod, run.job.spec.priority_class_name),
        "tolerations": tolerations(accelerators=False),
        "containers": [container(shape, run.platform)],
        "volumes": [
            *common_volumes(run, (names.CONTAINER_MASTER,)),
            {"name": "state", "persistentVolumeClaim": {"claimName": run.state_claim}},
            snapshots_volume(run),
        ],
    }
    return _pod(run, pod, names.Role.MASTER, 0, spec)


def hybrid_pod(run: Attempt, index: int) -> Manifest:
    """Trainer and engine on the same accelerators: the engine's half first, as a native sidecar."""
    pod, hybrid = names.hybrid_name(run.name, index), run.job.spec.hybrid
    spec = {
        **common_spec(run, pod, run.job.spec.priority_class_name),
        "tolerations": tolerations(accelerators=hybrid.accelerators > 0),
        "initContainers": [{**container(_inference(run, pod), run.platform), "restartPolicy": "Always"}],
        "containers": [container(_trainer(run, pod), run.platform)],
        "volumes": [
            *common_volumes(run, (names.CONTAINER_TRAINER, names.CONTAINER_INFERENCE)),
            memory_volume(hybrid.shared_memory),
            *kernel_volumes(hybrid.kernel_cache, hybrid.accelerators),
            snapshots_volume(run),
        ],
    }
    if run.by_claim:
        spec["resourceClaims"] = [{"name": names.DEVICE_CLAIM, "resourceClaimTemplateName": run.device_template}]
    if run.whole_node:
        spec["runtimeClassName"] = hybrid.runtime_class or "nvidia"
    return _pod(run, pod, names.Role.HYBRID, index, spec)


def _trainer(run: Attempt, pod: str) -> Shape:
    hybrid = run.job.spec.hybrid
    wanted = resources(hybrid.trainer.resources, hybrid.shared_memory or "")
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
            *common_mounts(run, names.CONTAINER_TRAINER),
            mount("shm", names.SHM_FOLDER),
            *kernel_mounts(hybrid.accelerators),
            mount("snapshots", names.SNAPSHOTS_FOLDER),
        ),
        environment={**run.environment(pod, accelerators=hybrid.accelerators), **trainer_variables(hybrid)},
        resources=wanted,
    )


def _inference(run: Attempt, pod: str) -> Shape:
    hybrid = run.job.spec.hybrid
    shape = inference_shape(
        run,
        hybrid.inference,
        environment=run.environment(pod, accelerators=hybrid.accelerators),
        shared_memory="",
        accelerators=hybrid.accelerators,
    )
    if run.by_claim:
        shape.resources["claims"] = [{"name": names.DEVICE_CLAIM}]
    if run.whole_node:
        shape.environment["NVIDIA_VISIBLE_DEVICES"] = "all"
    return shape


def inference_shape(
    run: Attempt,
    engine: InferenceSpec,
    *,
    environment: dict[str, str],
    shared_memory: str,
    accelerators: int,
    mounts: tuple[Manifest, ...] = (),
) -> Shape:
    """The container of an inference half; `shared_memory` when its size is charged to this container."""
    return Shape(
        name=names.CONTAINER_INFERENCE,
        image=engine.image or run.platform.inference_image,
        command=("python", "-m", "twinpod_sidecar"),
        args=("inference",),
        ports=(
            Port(name="grpc-inference", number=names.INFERENCE_PORT),
            Port(name="health-infer", number=names.INFERENCE_HEALTH_PORT),
        ),
        health=names.INFERENCE_HEALTH_PORT,
        mounts=(
            *common_mounts(run, names.CONTAINER_INFERENCE),
            mount("shm", names.SHM_FOLDER),
            *kernel_mounts(accelerators),
            mount("snapshots", names.SNAPSHOTS_FOLDER, read_only=True),
            *mounts,
        ),
        environment={**environment, **engine_variables(engine, accelerators)},
        resources=resources(engine.resources, shared_memory),
    )


def _pod(run: Attempt, stable: str, role: names.Role, index: int, spec: Manifest) -> Manifest:
    patch = run.job.spec.master.pod_patch if role is names.Role.MASTER else run.job.spec.hybrid.pod_patch
    labels = pod_labels(role, index, run.number)
    annotations: dict[str, str] = {}
    if run.queue:
        labels |= {names.QUEUE_LABEL: run.queue, names.QUEUE_GROUP_LABEL: names.queue_group_name(run.name, run.uid)}
        annotations[names.QUEUE_GROUP_COUNT] = str(1 + run.job.spec.hybrid.replicas)
    else:
        spec["schedulingGates"] = [{"name": names.GANG_GATE}]
    metadata = run.metadata(names.attempt_name(stable, run.number), labels)
    metadata["annotations"] = annotations
    return finished_pod(metadata, spec, patch)


def pod_labels(role: names.Role, index: int, attempt: int) -> dict[str, str]:
    """What tells a pod from its siblings."""
    return {
        names.LABEL_COMPONENT: role.value,
        names.LABEL_ROLE: role.value,
        names.LABEL_INDEX: str(index),
        names.LABEL_ATTEMPT: str(attempt),
        names.LABEL_PUBLISHED: "true",
    }
