"""The padded attention call gives what attention one sequence at a time gives."""

import pytest
import torch

from twinpod.inference.attention_plan import additive_mask, attend, plan_batch

HEAD, ROWS = 8, 400


def one_by_one(query, keys, values, table, lengths, new, window):
    """The reference: each sequence alone, each head with its own copy of the keys."""
    out, begin = [], 0
    groups = query.shape[1] // keys.shape[1]
    for row, (length, fresh) in enumerate(zip(lengths, new, strict=True)):
        rows = table[row, :length].long()
        k = keys[rows].repeat_interleave(groups, 1).transpose(0, 1)
        v = values[rows].repeat_interleave(groups, 1).transpose(0, 1)
        q = query[begin : begin + fresh].transpose(0, 1)
        seen, place = torch.arange(length - fresh, length)[:, None], torch.arange(length)
        hidden = place > seen
        if window is not None:
            hidden = hidden | (place < seen - window)
        scores = (q @ k.transpose(1, 2) * HEAD**-0.5).masked_fill(hidden, float("-inf"))
        out.append((scores.softmax(-1) @ v).transpose(0, 1))
        begin += fresh
    return torch.cat(out)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(
    ("lengths", "new"),
    [
        ([5, 9, 1, 30], [1, 1, 1, 1]),  # decode
        ([5, 9, 1, 30], [5, 9, 1, 30]),  # prefill
        ([5, 9, 12, 30], [2, 9, 1, 11]),  # prefill after a cached beginning
        ([7], [7]),
    ],
)
@pytest.mark.parametrize("limit", [10_000, 20])
@pytest.mark.parametrize("window", [None, 3])
def test_padded_equals_one_by_one(heads, lengths, new, limit, window) -> None:
    torch.manual_seed(0)
    query_heads, key_heads = heads
    keys, values = torch.randn(ROWS, key_heads, HEAD), torch.randn(ROWS, key_heads, HEAD)
    table = torch.stack([torch.randperm(ROWS - 1)[:40] + 1 for _ in lengths]).int()
    query = torch.randn(sum(new), query_heads, HEAD)
    expected = one_by_one(query, keys, values, table, lengths, new, window)

    parts = plan_batch(table, torch.tensor(lengths), torch.tensor(new), limit=limit)
    assert (len(parts) > 1) == (limit == 20 and len(lengths) > 1)
    found = torch.full_like(expected, float("nan"))
    for part in parts:
        mask = additive_mask(part, query.dtype, query_heads // key_heads, window)
        got = attend(query, keys, values, part, mask, HEAD**-0.5)
        places = torch.arange(len(got)) if part.real_places is None else part.real_places
        found[part.query_rows[places]] = got[places]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
