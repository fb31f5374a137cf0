"""Whether tensors hold finite numbers only: one reading of each, no second tensor of their size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Least and largest tell it: a NaN is both, an infinity one of them."""
    if tensor.numel() == 0:
        return True
    least, largest = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(least)) and bool(torch.isfinite(largest))


def first_not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Name of a tensor that holds a NaN or an infinity; empty when none does."""
    return next((name for name, tensor in tensors.items() if not is_finite(tensor)), "")
