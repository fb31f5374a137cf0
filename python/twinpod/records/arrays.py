"""Token ids and log-probs: immutable vectors of one dtype, one encoding from the engine's answer to the micro-batch.

A vector holds one little-endian buffer; there is no Python object a token. On the wire and in the books it is
`vector.tobytes()`; `TokenIds.frombytes` takes that back without a copy. Vectors are values: equal, hashable, sliced and
joined like tuples. To compute, take `vector.array`, a read-only view.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Self, overload

import numpy as np
import numpy.typing as npt

from twinpod.errors import ProtocolError


class _Vector:
    """Base of the two. Invariant: `array` is one-dimensional, contiguous, of `dtype`, and nobody writes to it."""

    __slots__ = ("array",)
    dtype: ClassVar[np.dtype[Any]]
    array: npt.NDArray[Any]

    def __init__(self, values: Iterable[Any] | npt.NDArray[Any] = ()) -> None:
        """From numbers (copied) or from an array of the dtype (not copied; do not write to it afterwards)."""
        source = values if isinstance(values, np.ndarray) else list(values)
        array = np.ascontiguousarray(source, dtype=self.dtype).reshape(-1).view()
        array.setflags(write=False)
        self.array = array

    @classmethod
    def frombytes(cls, raw: bytes | memoryview, where: str = "vector") -> Self:
        """The vector of a buffer, without a copy. ProtocolError when the buffer ends within an element."""
        if len(raw) % cls.dtype.itemsize:
            raise ProtocolError(f"{len(raw)} bytes are no whole number of {cls.dtype} values", where=where)
        return cls(np.frombuffer(raw, dtype=cls.dtype))

    @classmethod
    def joined(cls, vectors: Iterable[Self]) -> Self:
        """All of them, one after the other, in one copy."""
        arrays = [vector.array for vector in vectors]
        return cls(np.concatenate(arrays)) if arrays else cls()

    def tobytes(self) -> bytes:
        """Little-endian, one value after the other."""
        return self.array.tobytes()

    @property
    def nbytes(self) -> int:
        """Length of `tobytes()`."""
        return int(self.array.nbytes)

    def __len__(self) -> int:
        return int(self.array.size)

    def __iter__(self) -> Iterator[Any]:
        """Python numbers: for tests and short vectors only."""
        return iter(self.array.tolist())

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> Any:
        found = self.array[index]
        return type(self)(found) if isinstance(index, slice) else found.item()

    def __add__(self, other: Self) -> Self:
        return type(self).joined((self, other))

    def __eq__(self, other: object) -> bool:
        """By bytes, so that a NaN equals itself."""
        return type(other) is type(self) and self.tobytes() == other.tobytes()

    def __hash__(self) -> int:
        return hash(self.tobytes())

    def __repr__(self) -> str:
        shown = self.array[:6].tolist()
        return f"{type(self).__name__}({shown}{f'.. {len(self)} in all' if len(self) > len(shown) else ''})"


class TokenIds(_Vector):
    """Token ids, int32."""

    __slots__ = ()
    dtype = np.dtype("<i4")


class LogProbs(_Vector):
    """Natural log-probs, float32."""

    __slots__ = ()
    dtype = np.dtype("<f4")
