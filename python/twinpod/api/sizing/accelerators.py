"""Accelerators that `twinpod fit` knows.

`sheet` is the figure of the vendor's data sheet (A100, H100, H200, B200, L40S, L4, A10 data sheets of NVIDIA, which
mean binary gigabytes); `usable` is what CUDA reports as total, the least that was seen for the model: error correction
and the driver keep the difference.
"""

from __future__ import annotations

from twinpod.api.sizing.nouns import GIB, Accelerator
from twinpod.errors import InputError

DEFAULT = "h100-80gb"


def _known(name: str, sheet: str, usable_gib: float) -> Accelerator:
    return Accelerator(name=name, sheet=sheet, usable=int(usable_gib * GIB))


ACCELERATORS: dict[str, Accelerator] = {
    one.name: one
    for one in (
        _known("a100-40gb", "40 GB", 39.39),
        _known("a100-80gb", "80 GB", 79.15),
        _known("h100-80gb", "80 GB", 79.10),
        _known("h200-141gb", "141 GB", 139.72),
        _known("b200-180gb", "180 GB", 178.35),
        _known("l40s-48gb", "48 GB", 44.40),
        _known("a10-24gb", "24 GB", 21.99),
        _known("l4-24gb", "24 GB", 21.95),
        _known("rtx4090-24gb", "24 GB", 23.52),
    )
}


def accelerator(name: str) -> Accelerator:
    """By its name, or by the part before the memory where that is enough (`b200`); InputError lists the known ones."""
    wanted = name.lower()
    found = [one for one in ACCELERATORS.values() if one.name == wanted or one.name.startswith(f"{wanted}-")]
    if len(found) == 1:
        return found[0]
    raise InputError(f"{name!r} is not known", where="--accelerator", mend=f"use one of {', '.join(ACCELERATORS)}")
