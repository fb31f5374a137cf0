"""Container images of a few files, made and pushed without any tool: a tar, two JSON files, four requests."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """`blobs`: what the manifest names, by digest."""

    manifest: bytes
    blobs: Mapping[str, bytes]


def image(
    files: Mapping[str, bytes], *, command: Sequence[str], links: Mapping[str, str] | None = None, user: str = ""
) -> Image:
    """An image from scratch. `files`: absolute path to content, each executable. `links`: path to what it points to."""
    tarred = _tar(files, links or {})
    layer = gzip.compress(tarred, mtime=0)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": list(command), "User": user, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(tarred)]},
    }
    blobs = {CONFIG: json.dumps(config).encode(), LAYER: layer}
    entries = {kind: {"mediaType": kind, "digest": _digest(data), "size": len(data)} for kind, data in blobs.items()}
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": entries[CONFIG], "layers": [entries[LAYER]]}
    return Image(manifest=json.dumps(manifest).encode(), blobs={_digest(data): data for data in blobs.values()})


def push(host: str, name: str, made: Image) -> str:
    """Push to a registry as `name` (with a tag) and return the full name. What is there already is not sent again."""
    repository, tag = name.rsplit(":", 1)
    with httpx.Client(base_url=f"http://{host}/v2/{repository}", timeout=TIMEOUT_S, trust_env=False) as client:
        for digest, data in made.blobs.items():
            if client.head(f"/blobs/{digest}").status_code == httpx.codes.OK:
                continue
            begun = client.post("/blobs/uploads/").raise_for_status()
            place = httpx.URL(begun.headers["Location"]).copy_merge_params({"digest": digest})
            target = f"http://{host}{place.raw_path.decode()}"
            client.put(target, content=data, headers={"Content-Type": "application/octet-stream"}).raise_for_status()
        client.put(f"/manifests/{tag}", content=made.manifest, headers={"Content-Type": MANIFEST}).raise_for_status()
    return f"{host}/{name}"


def _tar(files: Mapping[str, bytes], links: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folders = {parent for path in (*files, *links) for parent in _parents(path)} | {"tmp"}
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        for path, content in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
        for path, target in links.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return buffer.getvalue()


def _parents(path: str) -> list[str]:
    parts = path.strip("/").split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
