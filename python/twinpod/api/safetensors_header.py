"""What a folder of safetensors files holds, by their headers alone: names, dtypes and shapes, and whether a file is
whole. The data is never read, so a folder of 140 GB takes a moment.

Format: an 8-byte little-endian length, a JSON header, the data (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinpod.errors import InputError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
POINTER = b"version https://git-lfs"
LARGEST_HEADER = 100 << 20  # bytes; safetensors itself takes no more
BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
AGAIN = "download the folder again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One tensor of a file."""

    dtype: str  # safetensors' name: F32, BF16, ..
    shape: tuple[int, ...]
    file: str


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder by name. InputError names the file that is missing, cut short or only a pointer."""
    index = folder / INDEX
    if not index.exists():
        if not (folder / WEIGHTS).exists():
            raise InputError(
                f"has neither {WEIGHTS} nor {INDEX}",
                where=str(folder),
                mend="give a Hugging Face folder with safetensors weights",
            )
        return read_header(folder / WEIGHTS)
    wanted = _weight_map(index)
    files = sorted(set(wanted.values()))
    if missing := [name for name in files if not (folder / name).exists()]:
        raise InputError(
            f"names {len(files)} files, of which {len(missing)} are not there: {', '.join(missing[:3])}",
            where=str(index),
            mend=AGAIN,
        )
    found: dict[str, Stored] = {}
    for name in files:
        found |= read_header(folder / name)
    for name, file in wanted.items():
        if name not in found or found[name].file != file:
            raise InputError(f"says that {file} holds {name}, which it does not", where=str(index), mend=AGAIN)
    return {name: found[name] for name in wanted}


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one file, which is proved to be as long as its header says."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            refuse_pointer(file.read(len(POINTER)), path)
            file.seek(0)
            head = file.read(8)
            length = int.from_bytes(head, "little")
            text = b"" if length > min(LARGEST_HEADER, size) else file.read(length)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if len(head) < 8 or len(text) < length or not text:
        raise InputError(
            f"is {size} bytes long, its header alone would be {length}: no safetensors file, or cut short",
            where=str(path),
            mend=AGAIN,
        )
    try:
        table = json.loads(text)
        found = {name: _stored(entry, path) for name, entry in table.items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for name, entry in table.items() if name in found), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise InputError(f"has no safetensors header: {error}", where=str(path), mend=AGAIN) from error
    if size != 8 + length + end:
        raise InputError(f"is {size} bytes long, its header says {8 + length + end}", where=str(path), mend=AGAIN)
    return found


def refuse_pointer(begin: bytes, path: Path) -> None:
    """InputError for a file that git-lfs has not replaced by what it stands for."""
    if begin.startswith(POINTER):
        raise InputError(
            "is only a pointer of git-lfs, not the file itself",
            where=str(path),
            mend="fetch it with `git lfs pull` or `hf download`",
        )


def _stored(entry: dict[str, Any], path: Path) -> Stored:
    shape, (begin, end) = tuple(int(length) for length in entry["shape"]), entry["data_offsets"]
    bits = BITS.get(entry["dtype"])
    if bits and math.prod(shape) * bits != (end - begin) * 8:
        raise ValueError(f"{end - begin} bytes for {entry['dtype']} {list(shape)}")
    return Stored(dtype=str(entry["dtype"]), shape=shape, file=path.name)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        text = index.read_bytes()
        refuse_pointer(text, index)
        found = json.loads(text)["weight_map"]
        return {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"cannot be read as an index of weights: {error}", where=str(index), mend=AGAIN) from error
