"""SGLang's key-value cache on a CPU, without writing to it at start.

`torch.zeros` writes every byte: for 65,536 tokens of a 4x128 model that is 0.6 s of page faults, a third of an engine's
start. The kernel gives zeroed pages anyhow, at first touch; `numpy.zeros` asks for those. The cache has the same size
and content, and is paid for as it fills.
"""

from __future__ import annotations

import numpy
import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

__all__ = ["LazyPool", "lazy_zeros"]


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A zero tensor whose pages are faulted in at first touch."""
    count = 1
    for size in shape:
        count *= size
    return torch.from_numpy(numpy.zeros(count * dtype.itemsize, dtype=numpy.uint8)).view(dtype).view(shape)


class LazyPool(MHATokenToKVPool):  # type: ignore[misc]  # SGLang ships no types
    """SGLang's pool with lazily zeroed buffers in the plain layout (slots, heads, size); other layouts are SGLang's."""

    def _create_buffers_normal(self) -> None:
        if self.kv_cache_layout != "nhd":
            super()._create_buffers_normal()
            return
        key_shape, value_shape = self._kv_buffer_shapes()
        self.k_buffer = [lazy_zeros(tuple(key_shape), self.store_dtype) for _ in range(self.layer_num)]
        self.v_buffer = [lazy_zeros(tuple(value_shape), self.store_dtype) for _ in range(self.layer_num)]
