"""Attention over all sequences of a batch in one padded call. Torch only; `attention_cpu` gives it to SGLang.

A forward is planned once (`plan_batch`) and the plan is used in every layer: which cache rows to gather, where each
query sits, what it may see. A layer then is two `index_select`s and one `scaled_dot_product_attention`.

Queries of the heads that share a key head are laid side by side as more queries of that head, so grouped-query
attention needs no copy of keys. Batches whose padding would be large are cut in runs of similar length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["TOKENS_PER_CALL", "Part", "additive_mask", "attend", "plan_batch"]

TOKENS_PER_CALL = 65_536
"""Padded key positions of one attention call (rows times the longest row); bounds memory and wasted work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One padded attention call: R rows (sequences), E queries and L keys each.

    `cache_rows`: int64 [R * L], rows of the key and value cache; padding points to row 0, which SGLang keeps for it.
    `visible`: bool [R, E, L], the keys that a query may see. `query_rows`: int64 [R * E], the flat query of each padded
    place. `real_places`: int64 [n], padded places that hold a query, in the order of `query_rows[real_places]`;
    None when nothing is padded.
    """

    rows: int
    queries: int
    keys: int
    cache_rows: torch.Tensor
    visible: torch.Tensor
    query_rows: torch.Tensor
    real_places: torch.Tensor | None


def _runs(lengths: list[int], limit: int) -> list[list[int]]:
    """Cut sequences into runs whose padded size stays below `limit`, similar lengths together; one run keeps order."""
    if len(lengths) * max(lengths) <= limit:
        return [list(range(len(lengths)))]
    runs: list[list[int]] = [[]]
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        run = runs[-1]
        if run and (len(run) + 1) * lengths[run[0]] > limit:
            run = []
            runs.append(run)
        run.append(index)
    return runs


def plan_batch(
    cache_table: torch.Tensor,
    lengths: torch.Tensor,
    new: torch.Tensor,
    *,
    limit: int = TOKENS_PER_CALL,
) -> list[Part]:
    """Plan the attention of one forward.

    `cache_table`: int [B, >= max length], cache row of each position of each sequence; `lengths`: int [B], positions
    including the new ones; `new`: int [B], how many of them are queries of this forward (1 in a decode), laid flat
    in order. Returns the calls to make, each query in exactly one.
    """
    starts = torch.cumsum(new, 0) - new
    parts = []
    for run in _runs(lengths.tolist(), limit):
        pick = torch.tensor(run)
        length, fresh, start = lengths[pick], new[pick], starts[pick]
        keys, queries = int(length.max()), int(fresh.max())
        position = torch.arange(keys)
        offset = torch.arange(queries)
        seen = (length - fresh).unsqueeze(1) + offset  # [R, E] last position that each query sees
        visible = position <= torch.minimum(seen, (length - 1).unsqueeze(1)).unsqueeze(2)
        real_key = position < length.unsqueeze(1)
        real_query = offset < fresh.unsqueeze(1)
        cache_rows = torch.where(real_key, cache_table[pick, :keys].long(), 0)
        query_rows = torch.where(real_query, start.unsqueeze(1) + offset, start.unsqueeze(1))
        whole = bool(real_query.all())
        parts.append(
            Part(
                rows=len(run),
                queries=queries,
                keys=keys,
                cache_rows=cache_rows.reshape(-1),
                visible=visible,
                query_rows=query_rows.reshape(-1),
                real_places=None if whole else real_query.reshape(-1).nonzero().squeeze(1),
            )
        )
    return parts


def additive_mask(part: Part, dtype: torch.dtype, groups: int, window: int | None) -> torch.Tensor:
    """0 where a query may see a key, -inf elsewhere: [R, 1, groups * E, L]; `window`: keys further back are hidden."""
    visible = part.visible
    if window is not None:
        last = visible.sum(2, keepdim=True) - 1
        visible = visible & (torch.arange(part.keys) >= last - window)
    mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, float("-inf"))
    return mask.unsqueeze(1).repeat(1, 1, groups, 1)


def attend(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    part: Part,
    mask: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attention of one part. `query` [T, Hq, D]; caches [rows, Hkv, D]; returns [R * E, Hq, Dv] in padded places."""
    rows, queries, keys = part.rows, part.queries, part.keys
    kv_heads = key_cache.shape[1]
    groups = query.shape[1] // kv_heads

    def gather(cache: torch.Tensor) -> torch.Tensor:
        picked = cache.index_select(0, part.cache_rows).to(query.dtype)
        return picked.view(rows, keys, kv_heads, -1).transpose(1, 2)

    packed = query.index_select(0, part.query_rows).view(rows, queries, kv_heads, groups, -1)
    packed = packed.permute(0, 2, 3, 1, 4).reshape(rows, kv_heads, groups * queries, -1)
    out = scaled_dot_product_attention(packed, gather(key_cache), gather(value_cache), attn_mask=mask, scale=scale)
    out = out.view(rows, kv_heads, groups, queries, -1).permute(0, 3, 1, 2, 4)
    return out.reshape(rows * queries, kv_heads * groups, -1)
