"""One arena file: create, open, view, digest."""

from __future__ import annotations

import contextlib
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import xxhash

from twinpod.arena.layout import CARRIER
from twinpod.errors import EnvironmentFault, InputError, IntegrityError
from twinpod.records.weights import ShardLayout, TensorPart

Bytes = npt.NDArray[np.uint8]
_MADV_POPULATE_READ = 22  # linux/mman.h; Python 3.11 has no name for it
DIGEST_CHUNK = (
    8 << 20
)  # bytes hashed as one unit; the shard's digest is over the chunks' digests, so threads can share the work


class Arena:
    """A mapped arena file. Views stay valid until `close`; the file lives until `unlink`.

    Invariant: a slot is written by its owner alone, and only while no announced version lies in it.
    """

    def __init__(self, path: Path, layout: ShardLayout, slots: int, *, writable: bool) -> None:
        self.path, self.layout, self.slots = path, layout, slots
        size = layout.slot_bytes * slots
        flags = os.O_RDWR if writable else os.O_RDONLY
        descriptor = os.open(path, flags)
        try:
            if os.fstat(descriptor).st_size != size:
                raise IntegrityError(
                    f"has {os.fstat(descriptor).st_size} bytes, its layout says {size}", where=str(path)
                )
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            self._map = mmap.mmap(descriptor, size, access=access)
        finally:
            os.close(descriptor)
        self._bytes: Bytes = np.frombuffer(self._map, dtype=np.uint8)

    @classmethod
    def create(cls, path: Path, layout: ShardLayout, slots: int = 2) -> Arena:
        """Make the file, reserve and fault in all its pages.

        InputError when shared memory as a whole is smaller than the arena: trying again cannot help. EnvironmentFault
        when it is only too full.
        `posix_fallocate` is what turns a full /dev/shm into an error here instead of a SIGBUS later.
        """
        size = layout.slot_bytes * slots
        space = os.statvfs(path.parent)
        free = space.f_bavail * space.f_frsize + (path.stat().st_blocks * 512 if path.exists() else 0)
        if free < size:
            kind = InputError if space.f_blocks * space.f_frsize < size else EnvironmentFault
            raise kind(
                f"shared memory too small: the arena needs {size / 1e6:.1f} MB, {free / 1e6:.1f} MB are free",
                where=str(path.parent),
                mend="raise spec.hybrid.sharedMemory, or free space there",
            )
        again = path.exists() and path.stat().st_size == size
        if not again:
            path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | (0 if again else os.O_CREAT | os.O_EXCL), 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise EnvironmentFault(
                f"cannot reserve {size / 1e6:.1f} MB: {error.strerror}",
                where=str(path),
                mend="raise spec.hybrid.sharedMemory",
            ) from error
        finally:
            os.close(descriptor)
        arena = cls(path, layout, slots, writable=True)
        arena._map.madvise(mmap.MADV_WILLNEED)
        if again:
            for slot in range(slots):
                arena.prefault(slot)
        else:
            arena._bytes[:: mmap.PAGESIZE] = 0
        return arena

    @classmethod
    def open(cls, path: Path, layout: ShardLayout, slots: int = 2, *, writable: bool = False) -> Arena:
        """Map an existing file."""
        return cls(path, layout, slots, writable=writable)

    def slot(self, index: int) -> Bytes:
        """The raw bytes of a slot, uint8[slot_bytes], no copy."""
        start = index * self.layout.slot_bytes
        return self._bytes[start : start + self.layout.slot_bytes]

    def prefault(self, slot: int) -> None:
        """Map a slot's pages at once, for a reader who will touch them all; without it each page costs a fault."""
        with contextlib.suppress(OSError):  # kernels before 5.14 do not know the advice: the faults come one by one
            self._map.madvise(_MADV_POPULATE_READ, slot * self.layout.slot_bytes, self.layout.slot_bytes)

    def part(self, slot: int, part: TensorPart) -> npt.NDArray[np.generic]:
        """A part as an array of its carrier dtype and shape, no copy (BF16 comes as uint16 bits)."""
        raw = self.slot(slot)[part.offset : part.offset + part.nbytes]
        return raw.view(CARRIER[part.dtype]).reshape(part.shape)

    def digest(self, slot: int, threads: int = 1) -> str:
        """`xxh3:` + 16 hex digits over the slot's parts (the gaps between them are not hashed)."""
        return slot_digest(self.slot(slot), self.layout, threads)

    def close(self) -> None:
        """Unmap; views taken from this arena must be gone, a live one keeps the mapping."""
        self._bytes = np.empty(0, dtype=np.uint8)
        try:
            self._map.close()
        except BufferError:  # a view is still alive: the mapping goes with it
            return

    def unlink(self) -> None:
        """Remove the file; mappings of others stay valid."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Arena:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def slot_digest(slot: Bytes, layout: ShardLayout, threads: int = 1) -> str:
    """Digest of a slot's parts, in order of offset: xxh3_64 over the xxh3_64 of each chunk of each part."""
    chunks = [
        slot[begin : min(begin + DIGEST_CHUNK, part.offset + part.nbytes)]
        for part in layout.parts
        for begin in range(part.offset, part.offset + part.nbytes, DIGEST_CHUNK)
    ]
    if threads <= 1:
        digests = [xxhash.xxh3_64_digest(chunk.data) for chunk in chunks]
    else:
        with ThreadPoolExecutor(threads) as pool:  # threads: xxhash releases the GIL on large buffers
            digests = list(pool.map(lambda chunk: xxhash.xxh3_64_digest(chunk.data), chunks))
    return "xxh3:" + xxhash.xxh3_64_hexdigest(b"".join(digests))


def combined_digest(digests: list[str]) -> str:
    """Digest of a version: xxh3_64 over its shards' digests, in the given order."""
    return "xxh3:" + xxhash.xxh3_64_hexdigest("\n".join(digests).encode())
