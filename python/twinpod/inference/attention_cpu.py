"""Attention on a CPU for SGLang: all sequences of a batch in one padded call.

SGLang's `torch_native` backend loops over the sequences of a batch in Python and, for a prefill, computes attention for
cached positions too and throws the result away. With the small models and short answers that a machine without an
accelerator can train, that loop is most of the time. This backend plans a forward once and reuses the plan in every
layer (`attention_plan.py`). Cross-attention and encoder-only layers go to `torch_native`, which this class extends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from twinpod.inference.attention_plan import Part, additive_mask, attend, plan_batch

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

__all__ = ["PaddedAttention", "create"]


class PaddedAttention(TorchNativeAttnBackend):  # type: ignore[misc]  # SGLang ships no types
    """The backend that SGLang calls: `init_forward_metadata` once a forward, then one `forward_*` per layer.

    Lives as long as its model runner; holds the plan of the forward under way and the masks made for it.
    """

    def __init__(self, model_runner: ModelRunner) -> None:
        super().__init__(model_runner)
        self._parts: list[Part] = []
        self._masks: dict[tuple[int, int, int | None], torch.Tensor] = {}

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Plan this forward for all layers."""
        super().init_forward_metadata(forward_batch)
        self._masks = {}
        lengths = forward_batch.seq_lens.long()
        if lengths.numel() == 0:
            self._parts = []
            return
        decode = forward_batch.forward_mode.is_decode()
        new = torch.ones_like(lengths) if decode else forward_batch.extend_seq_lens.long()
        table = self.req_to_token_pool.req_to_token[forward_batch.req_pool_indices, : int(lengths.max())]
        self._parts = plan_batch(table, lengths, new)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        """Prefill, with or without a cached beginning."""
        if layer.is_cross_attention or layer.attn_type == AttentionType.ENCODER_ONLY:
            plain: torch.Tensor = super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
            return plain
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        """One new token for every sequence."""
        if layer.is_cross_attention:
            plain: torch.Tensor = super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
            return plain
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache)

    def _forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Any,
        forward_batch: ForwardBatch,
        save_kv_cache: bool,
    ) -> torch.Tensor:
        pool = self.token_to_kv_pool
        if save_kv_cache and k is not None and v is not None:
            pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc), k, v)
        keys, values = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
        query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        out = query.new_empty((query.shape[0], layer.tp_q_head_num, layer.v_head_dim))
        window = layer.sliding_window_size
        window = window if window is not None and window > -1 else None
        groups = layer.tp_q_head_num // keys.shape[1]
        for index, part in enumerate(self._parts):
            name = (index, groups, window)
            if name not in self._masks:
                self._masks[name] = additive_mask(part, query.dtype, groups, window)
            got = attend(query, keys, values, part, self._masks[name], layer.scaling)
            if part.real_places is None:
                out.index_copy_(0, part.query_rows, got)
            else:
                out.index_copy_(0, part.query_rows[part.real_places], got.index_select(0, part.real_places))
        return out.view(query.shape[0], -1)


def create(model_runner: ModelRunner) -> PaddedAttention:
    """Factory for SGLang's attention registry."""
    return PaddedAttention(model_runner)
