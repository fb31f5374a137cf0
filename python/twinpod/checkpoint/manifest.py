"""The manifest of a version: a `WeightVersion` as JSON in shared memory, read by the weight loader inside the
engine.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import xxhash

from twinpod.errors import EnvironmentFault, IntegrityError
from twinpod.records import codec
from twinpod.records.weights import WeightVersion

KEPT = 2  # manifests kept: as many versions as an arena has slots


def manifest_path(folder: Path, version: int) -> Path:
    """Where the manifest of a version lies."""
    return folder / f"version-{version}.json"


def write_manifest(folder: Path, version: WeightVersion) -> str:
    """Write it, complete or not at all, and remove those whose slot has been overwritten; returns the digest of its
    bytes.
    """
    data = codec.dumps(version).encode()
    path = manifest_path(folder, version.version)
    part = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise EnvironmentFault(
            f"the manifest cannot be written: {error.strerror}", where=str(path), mend="raise spec.hybrid.sharedMemory"
        ) from error
    for old in folder.glob("version-*.json"):
        number = old.stem.removeprefix("version-")
        if number.isdigit() and int(number) <= version.version - KEPT:
            old.unlink(missing_ok=True)
    return digest_of(data)


def read_manifest(path: Path, digest: str = "") -> WeightVersion:
    """The version in the file; IntegrityError when `digest` is given and the bytes have another."""
    data = path.read_bytes()
    if digest and digest_of(data) != digest:
        raise IntegrityError(f"has digest {digest_of(data)}, expected {digest}", where=str(path))
    return codec.loads(WeightVersion, data.decode())


def digest_of(data: bytes) -> str:
    """`xxh3:` and 16 hex digits."""
    return "xxh3:" + xxhash.xxh3_64_hexdigest(data)
