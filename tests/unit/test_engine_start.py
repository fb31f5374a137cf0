"""How an engine is started: forked or executed anew, on which accelerators, on which of SGLang's platforms."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from sglang.srt.platforms.cuda import CudaSRTPlatform

from twinpod.inference.platform_cpu import CUDA_PLATFORM, activate
from twinpod.inference.sglang_engine import EngineSpec, server_args
from twinpod.inference.standby import accelerator_touched
from twinpod_sidecar.engine_group import engine_specs
from twinpod_sidecar.standby import Ready, why_spawn

BASE = EngineSpec(
    model_path="/m",
    port=0,
    api_key="",
    kv_tokens=8,
    context_length=8,
    max_running=7,
    tensor_parallel=2,
    accelerators=True,
)


@pytest.mark.parametrize(
    ("ready", "sleep", "reason"),
    [
        (Ready(), False, ""),
        (Ready(accelerators=False), True, ""),  # nothing to give back, so nothing to preload
        (Ready(), True, "torch_memory_saver"),
        (Ready(context=True), False, "CUDA context"),
        (Ready(threads=2), False, "2 threads"),
        (Ready(imported=False), False, "not imported"),
    ],
)
def test_an_engine_is_executed_anew_where_a_fork_would_not_live(ready: Ready, sleep: bool, reason: str) -> None:
    found = why_spawn(ready, sleep=sleep)
    assert reason in found
    assert bool(reason) == bool(found)


def test_each_engine_of_a_pod_has_accelerators_a_port_and_a_seed_of_its_own() -> None:
    specs = engine_specs(BASE, (1, 2, 3), "key", seed=5, run=1)
    assert [spec.port for spec in specs] == [1, 2, 3]
    assert [server_args(spec)["base_gpu_id"] for spec in specs] == [0, 2, 4]
    assert {spec.max_running for spec in specs} == {3}  # together at least the pod's seven
    seeds = {spec.seed for run in range(50) for spec in engine_specs(BASE, (1, 2, 3), "key", seed=5, run=run)}
    assert len(seeds) == 150
    assert "base_gpu_id" not in server_args(
        EngineSpec(model_path="", port=1, api_key="", kv_tokens=1, context_length=1)
    )


@pytest.mark.parametrize(
    ("available", "cuda", "name"),
    [
        (False, None, "twinpod.inference.platform_cpu:TwinpodCpuPlatform"),
        (False, "13.0", "twinpod.inference.platform_cpu:TwinpodCpuPlatform"),
        (True, "13.0", CUDA_PLATFORM),
        (True, None, None),  # another maker's
    ],
)
def test_the_platform_is_named_before_sglang_asks_the_device(
    available: bool, cuda: str | None, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert activate() == name


def test_sglang_has_the_class_that_is_named() -> None:
    module, _, name = CUDA_PLATFORM.partition(":")
    found = importlib.util.find_spec(module)
    assert found is not None
    assert (CudaSRTPlatform.__module__, CudaSRTPlatform.__name__) == (module, name)
    assert not CudaSRTPlatform().is_out_of_tree()


def test_a_device_that_a_library_opened_for_cuda_is_seen(tmp_path: Path) -> None:
    (tmp_path / "3").symlink_to("/dev/nvidiactl")  # NVML's
    (tmp_path / "4").symlink_to("socket:[1]")
    assert not accelerator_touched(tmp_path)
    (tmp_path / "5").symlink_to("/dev/nvidia-uvm")
    assert accelerator_touched(tmp_path)
