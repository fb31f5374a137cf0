"""Layouts by what they say: a digest names one, so that it travels once and is meant ever after.

The digest leaves the owner out: the copies that several pods publish lie the same way, and share it. A rank leaves its
layout in a file beside its arena, where the halves of its pod find it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import xxhash

from twinpod.errors import IntegrityError
from twinpod.records import codec
from twinpod.records.weights import ShardLayout, ShardRecord, ShardRef

FOLDER = "layouts"


def content(layout: ShardLayout) -> bytes:
    """The layout as it travels and lies in a file, without its owner."""
    return codec.dumps(replace(layout, owner="")).encode()


def digest_of(data: bytes) -> str:
    """What names it: `xxh3:` and 32 hex digits."""
    return "xxh3:" + xxhash.xxh3_128_hexdigest(data)


def from_content(data: bytes, digest: str, where: str) -> ShardLayout:
    """The layout without an owner; IntegrityError when the bytes are not what the digest names."""
    if (found := digest_of(data)) != digest:
        raise IntegrityError(f"the layout has the digest {found}, {digest} was asked for", where=where)
    return codec.loads(ShardLayout, data.decode())


def write_layout(folder: Path, layout: ShardLayout) -> str:
    """Leave the layout in a file below `folder`, complete or not at all; returns its digest."""
    data = content(layout)
    digest = digest_of(data)
    path = layout_path(folder, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".part-{os.getpid()}")  # ranks of equal layouts write at the same time
    part.write_bytes(data)
    part.replace(path)
    return digest


def layout_path(folder: Path, digest: str) -> Path:
    """Where the layout lies that a digest names."""
    return folder / FOLDER / f"{digest.removeprefix('xxh3:')}.json"


def record_of(shard: ShardRef, layout: ShardLayout) -> ShardRecord:
    """The record that a reference and the layout that it names make."""
    return ShardRecord(
        layout=replace(layout, owner=shard.owner),
        path=shard.path,
        slot=shard.slot,
        digest=shard.digest,
        address=shard.address,
    )


def reference(shard: ShardRecord, layout: str) -> ShardRef:
    """A record as it travels; `layout`: the digest of its layout."""
    return ShardRef(
        owner=shard.layout.owner,
        layout=layout,
        path=shard.path,
        slot=shard.slot,
        digest=shard.digest,
        address=shard.address,
    )
