"""What containers get because their pod has accelerators, or a network of its own: variables, and a folder for compiled
kernels. Pure.
"""

from __future__ import annotations

from twinpod.api import names
from twinpod.api.pods import HybridSpec, InferenceSpec, KernelCache
from twinpod_operator.render_containers import Manifest, mount

_VOLUME = "kernels"


def trainer_variables(hybrid: HybridSpec) -> dict[str, str]:
    """Of the trainer container; the person's own come last and win.

    One connection: Megatron's overlap of communication with computation relies on kernels starting in the order in
    which they were launched (`tensor_parallel/layers.py`). Expandable segments: micro-batches differ in length, and
    fixed segments of many sizes leave holes. The engine must not have them: torch_memory_saver refuses them.
    """
    result: dict[str, str] = {}
    if hybrid.accelerators:
        result = {
            **_common(names.CONTAINER_TRAINER),
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        }
    if interface := hybrid.network.interface:
        exactly = f"={interface}"  # NCCL takes every interface that begins so, otherwise
        result |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": exactly}
    return {**result, **{one.name: one.value for one in hybrid.trainer.env}}


def engine_variables(engine: InferenceSpec, accelerators: int) -> dict[str, str]:
    """Of the inference container; the person's own come last and win."""
    result: dict[str, str] = {}
    if accelerators:
        folder = f"{names.KERNELS_FOLDER}/{names.CONTAINER_INFERENCE}"
        result = {**_common(names.CONTAINER_INFERENCE), "SGLANG_CACHE_DIR": folder, "FLASHINFER_WORKSPACE_BASE": folder}
    return {**result, **{one.name: one.value for one in engine.env}}


def _common(container: str) -> dict[str, str]:
    """Devices in the order of the bus, as NVML counts them, and every cache of compiled kernels in one place."""
    folder = f"{names.KERNELS_FOLDER}/{container}"
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_CACHE_PATH": f"{folder}/nv",
        "TRITON_CACHE_DIR": f"{folder}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        "TORCH_EXTENSIONS_DIR": f"{folder}/extensions",
    }


def kernel_mounts(accelerators: int) -> tuple[Manifest, ...]:
    """The folder of compiled kernels, where there are accelerators."""
    return (mount(_VOLUME, names.KERNELS_FOLDER),) if accelerators else ()


def kernel_volumes(cache: KernelCache, accelerators: int) -> list[Manifest]:
    """Its volume: the claim that was named, or a folder that lives as long as the pod."""
    if not accelerators:
        return []
    claim = cache.existing_claim
    return [{"name": _VOLUME, **({"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}})}]
