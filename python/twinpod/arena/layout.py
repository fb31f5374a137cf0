"""Where each tensor part lies in a slot. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from twinpod.errors import InputError
from twinpod.records.weights import ShardLayout, TensorPart

ALIGNMENT = 256  # bytes; enough for any vector unit and for GPU copies
PAGE = 4096
ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
# numpy has no bfloat16: its bits are carried as uint16 and re-read as bfloat16 by torch.
CARRIER: dict[str, np.dtype[np.generic]] = {"F32": np.dtype("<f4"), "BF16": np.dtype("<u2"), "F16": np.dtype("<f2")}


def part_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a part; InputError names a dtype that the arena does not carry."""
    if dtype not in ITEM_BYTES:
        raise InputError(f"dtype {dtype!r} is not carried by the arena", mend=f"use one of {', '.join(ITEM_BYTES)}")
    return math.prod(shape) * ITEM_BYTES[dtype]


def plan_layout(owner: str, parts: Iterable[TensorPart]) -> ShardLayout:
    """Place `parts` one after the other, each aligned; their `offset` and `nbytes` are filled in here."""
    placed, offset = [], 0
    for part in parts:
        nbytes = part_bytes(part.dtype, part.shape)
        placed.append(replace(part, offset=offset, nbytes=nbytes))
        offset += -(-nbytes // ALIGNMENT) * ALIGNMENT
    slot_bytes = max(PAGE, -(-offset // PAGE) * PAGE)
    return ShardLayout(owner=owner, slot_bytes=slot_bytes, parts=tuple(placed))
