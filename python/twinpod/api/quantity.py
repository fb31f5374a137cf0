"""Kubernetes quantities ("512Mi", "2", "500m", "1e3") to exact numbers and back."""

from __future__ import annotations

import re
from decimal import Decimal

PATTERN = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]{1,2})?$"
_SHAPE = re.compile(PATTERN)
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_POWERS = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


class QuantityError(ValueError):
    """Text that is no quantity; the message says what one looks like."""


def parse(text: str) -> Decimal:
    """The exact number of a quantity of 0 or more; QuantityError for anything else."""
    match = _SHAPE.match(text)
    if match is None or len(text) > 32:
        raise QuantityError(f'"{text}" is not a quantity; write one such as 512Mi, 2Gi or 500m')
    number, suffix = Decimal(match.group(1)), match.group(3) or ""
    if suffix in _BINARY:
        return number * (1 << _BINARY[suffix])
    if suffix in _POWERS:
        return number.scaleb(_POWERS[suffix])
    return number.scaleb(int(suffix[1:]))


def to_bytes(text: str) -> int:
    """Bytes of a quantity, rounded up to a whole one."""
    number = parse(text)
    return int(number) + (1 if number % 1 else 0)


def from_bytes(count: int) -> str:
    """The shortest exact quantity of a whole number of bytes: 1073741824 is "1Gi"."""
    for suffix, shift in sorted(_BINARY.items(), key=lambda item: -item[1]):
        if count and count % (1 << shift) == 0:
            return f"{count >> shift}{suffix}"
    return str(count)


def add(*texts: str) -> str:
    """Sum of quantities of bytes."""
    return from_bytes(sum(to_bytes(text) for text in texts))
