"""What accelerators and a network bring into the pods: variables, compiled kernels, and how many engines there are."""

from __future__ import annotations

from typing import Any

import pytest

from twinpod.api.job import RLJob
from twinpod.api.pools import RolloutPool
from twinpod.api.types import RLJob as Job
from twinpod_operator.render import Platform, render_job
from twinpod_operator.render_pool import render_pool

PLATFORM = Platform(master_image="m", trainer_image="t", inference_image="i", etcd=("etcd:2379",))


def job_with(**hybrid: Any) -> RLJob:
    spec = {
        "iterations": 1,
        "model": {"from": "/models/m"},
        "dataset": {"reasoningGym": {"name": "spell_backward"}},
        "algorithm": {"groupsPerIteration": 1, "learningRate": "1e-3"},
        "rollout": {"maxTokens": 4},
        "reward": {"kind": "prefix"},
        "hybrid": hybrid,
    }
    return Job.model_validate(
        {"apiVersion": "twinpod.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "x"}, "spec": spec}
    )


def hybrid_pod(job: RLJob) -> dict[str, Any]:
    made = render_job(job, platform=PLATFORM, uid="u" * 8, attempt=1)
    (pod,) = [one for one in made if one["kind"] == "Pod" and "hybrid" in one["metadata"]["name"]]
    return pod


def container(pod: dict[str, Any], name: str) -> dict[str, Any]:
    spec = pod["spec"]
    (found,) = [one for one in (*spec["containers"], *spec.get("initContainers", ())) if one["name"] == name]
    return found


def variables(pod: dict[str, Any], name: str) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(pod, name)["env"] if "value" in entry}


def test_the_trainer_on_gpus_has_what_megatron_and_its_allocator_need_and_the_engine_has_not() -> None:
    pod = hybrid_pod(job_with(accelerators=2))
    trainer, engine = variables(pod, "trainer"), variables(pod, "inference")
    assert trainer["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert trainer["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert not {"CUDA_DEVICE_MAX_CONNECTIONS", "PYTORCH_CUDA_ALLOC_CONF"} & engine.keys()
    assert trainer["CUDA_DEVICE_ORDER"] == engine["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_compiled_kernels_are_kept_in_one_folder_for_each_side() -> None:
    for claim, source in ((None, {"emptyDir": {}}), ("kernels", {"persistentVolumeClaim": {"claimName": "kernels"}})):
        cache = {} if claim is None else {"kernelCache": {"existingClaim": claim}}
        pod = hybrid_pod(job_with(accelerators=1, **cache))
        assert {"name": "kernels", **source} in pod["spec"]["volumes"]
        for name in ("trainer", "inference"):
            assert {"name": "kernels", "mountPath": "/var/cache/twinpod"} in container(pod, name)["volumeMounts"]
            folders = [value for value in variables(pod, name).values() if value.startswith("/var/cache/twinpod")]
            assert len(folders) >= 4
            assert all(folder.startswith(f"/var/cache/twinpod/{name}") for folder in folders)


def test_without_accelerators_pods_have_none_of_it() -> None:
    pod = hybrid_pod(job_with())
    assert "kernels" not in {volume["name"] for volume in pod["spec"]["volumes"]}
    for name in ("trainer", "inference"):
        assert (
            not {"CUDA_DEVICE_MAX_CONNECTIONS", "TRITON_CACHE_DIR", "NCCL_SOCKET_IFNAME"} & variables(pod, name).keys()
        )


def test_the_interface_is_told_to_gloo_and_exactly_to_nccl() -> None:
    trainer = variables(hybrid_pod(job_with(network={"interface": "eth0"})), "trainer")
    assert (trainer["GLOO_SOCKET_IFNAME"], trainer["NCCL_SOCKET_IFNAME"]) == ("eth0", "=eth0")


def test_the_persons_variables_win() -> None:
    more = [{"name": "NCCL_DEBUG", "value": "INFO"}, {"name": "CUDA_DEVICE_MAX_CONNECTIONS", "value": "8"}]
    pod = hybrid_pod(job_with(accelerators=1, trainer={"env": more}, inference={"env": [{"name": "A", "value": "b"}]}))
    trainer = variables(pod, "trainer")
    assert (trainer["NCCL_DEBUG"], trainer["CUDA_DEVICE_MAX_CONNECTIONS"]) == ("INFO", "8")
    assert variables(pod, "inference")["A"] == "b"
    assert "A" not in trainer


@pytest.mark.parametrize(
    ("hybrid", "engines", "kv_tokens"),
    [
        ({}, 1, 65_536),
        ({"inference": {"dataParallel": 2}}, 2, 65_536),
        ({"accelerators": 8}, 8, None),
        ({"accelerators": 8, "inference": {"tensorParallel": 4}}, 2, None),
        ({"accelerators": 8, "inference": {"tensorParallel": 8, "kvTokens": 100}}, 1, 100),
    ],
)
def test_engines_fill_the_accelerators_of_a_pod(hybrid: dict[str, Any], engines: int, kv_tokens: int | None) -> None:
    engine = job_with(**hybrid).spec.hybrid.inference
    assert (engine.data_parallel, engine.kv_tokens) == (engines, kv_tokens)


def test_a_pools_pods_have_the_same() -> None:
    manifest = {
        "apiVersion": "twinpod.dev/v1alpha1",
        "kind": "RolloutPool",
        "metadata": {"name": "p"},
        "spec": {
            "job": "x",
            "accelerators": 4,
            "kernelCache": {"existingClaim": "k"},
            "inference": {"tensorParallel": 2},
        },
    }
    pool = RolloutPool.model_validate(manifest)
    assert (pool.spec.inference.data_parallel, pool.spec.inference.kv_tokens) == (2, None)
    made = render_pool(pool, job_with(), platform=PLATFORM, job_uid="u" * 8, pool_uid="v" * 8)
    (pod,) = [one for one in made if one["kind"] == "Pod"]
    assert {"name": "kernels", "persistentVolumeClaim": {"claimName": "k"}} in pod["spec"]["volumes"]
    assert variables(pod, "inference")["SGLANG_CACHE_DIR"] == "/var/cache/twinpod/inference"
