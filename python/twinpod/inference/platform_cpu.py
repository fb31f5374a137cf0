"""SGLang on a machine without an accelerator: the out-of-tree platform `twinpod_cpu`.

SGLang 0.5.23's own CPU platform (`SGLANG_USE_CPU_ENGINE=1`) wants AMX kernels that no package registry carries. Its
platform plug-in point needs none of them: an entry point in the group `sglang.srt.platforms` names `activate`, which
returns the class below when there is no GPU. With an NVIDIA GPU it names SGLang's own class for it: left to itself,
SGLang asks for the device's name first (`platforms/__init__.py`, `_is_sail_available`), which makes a CUDA context, and
no fork survives one.

The class only answers questions that SGLang asks of a platform: the device is `cpu`, collectives run over gloo,
layers use their `forward_native` form, attention is `twinpod_cpu` (`attention_cpu.py`), and the key-value cache is
memory that the kernel hands out page by page, so that an engine with a large cache starts at once.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

from twinpod.inference.names import ATTENTION_BACKEND

__all__ = ["CUDA_PLATFORM", "TwinpodCpuPlatform", "activate"]

CUDA_PLATFORM = "sglang.srt.platforms.cuda:CudaSRTPlatform"


def activate() -> str | None:
    """Name the platform class; None on accelerators of other makers (SGLang then picks its own)."""
    if not torch.cuda.is_available():
        return f"{__name__}:TwinpodCpuPlatform"
    return CUDA_PLATFORM if torch.version.cuda is not None else None


class TwinpodCpuPlatform(CpuDeviceMixin, SRTPlatform):  # type: ignore[misc]  # SGLang ships no types
    """SGLang's view of a machine with CPUs only. Made once a process, by SGLang; holds no state."""

    _enum = PlatformEnum.OOT
    capabilities = PlatformCapabilities()

    def get_default_attention_backend(self) -> str:
        """Attention over all sequences in one padded call; `torch_native` takes them one by one."""
        return ATTENTION_BACKEND

    def is_pin_memory_available(self, device: torch.device | None = None) -> bool:
        """No accelerator, so no host memory to pin."""
        return False

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Attention backend when none was asked for, and a binding that lets several ranks share the cores.

        SGLang has already filled in `intel_amx`, its default for the device `cpu`; its binding refuses more ranks than
        memory nodes unless it is named.
        """
        if server_args.attention_backend in (None, "intel_amx"):
            server_args.attention_backend = ATTENTION_BACKEND
        ranks = server_args.tp_size * server_args.pp_size * server_args.dp_size
        if ranks > 1:
            cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
            os.environ.setdefault("SGLANG_CPU_OMP_THREADS_BIND", "|".join([cores] * ranks))

    def get_kv_pool_cls(self, *, kind: str) -> type | None:
        """A cache that is not written at start; kinds other than plain attention stay SGLang's."""
        if kind != "mha":
            return None
        from twinpod.inference.kv_pool_cpu import LazyPool

        return LazyPool

    def init_backend(self) -> None:
        """Make the attention backend known to SGLang's registry (SGLang calls this once in each process)."""
        from sglang.srt.layers.attention.attention_registry import register_attention_backend

        from twinpod.inference.attention_cpu import create

        register_attention_backend(ATTENTION_BACKEND)(create)
