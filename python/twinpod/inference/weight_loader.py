"""SGLang's custom weight loader: `--custom-weight-loader twinpod.inference.weight_loader.load`.

Theory of operation
-------------------
The half asks SGLang's `/update_weights_from_tensor` to load one tiny tensor, the UTF-8 bytes of `{"manifest": path,
"digest": "xxh3:.."}` (standby op `payload`). SGLang hands it to `load` in every tensor-parallel rank. The manifest is a
`WeightVersion` as JSON; its shards are arena files in shared memory, mapped read-only here; the tensors go to the
model's own `load_weights`, which cuts them for the rank.

Two things are proved on the way: the manifest is the one that was announced (the digest of its bytes), and every
parameter was written: a few elements of each are set to NaN first and must be gone afterwards, for SGLang's models skip
unknown names in silence. The bytes themselves are hashed by `weight_parts.verify`, apart, before the load: by the half
that fetched them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from twinpod.errors import IntegrityError, ProtocolError
from twinpod.inference.names import LOADER
from twinpod.inference.weight_parts import Mappings, WeightReader
from twinpod.records.codec import loads
from twinpod.records.weights import WeightVersion

__all__ = ["load", "load_version", "read_manifest"]

_MAPPINGS = Mappings()  # of this process, which SGLang owns: there is no better place between two calls of `load`
_MARKS = 128  # rows of a parameter that are marked before a load: one lies in each key-value head of 64 query heads


def load(model: torch.nn.Module, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """What SGLang calls. `named_tensors`: exactly one uint8 tensor, the note described above."""
    tensors = list(named_tensors)
    if len(tensors) != 1 or tensors[0][1].dtype != torch.uint8:
        raise ProtocolError(
            f"expected one uint8 tensor that names a manifest, found {len(tensors)} tensors", where=LOADER
        )
    note = json.loads(bytes(tensors[0][1].cpu().numpy()).decode())
    load_version(model, read_manifest(note["manifest"], note["digest"]), _MAPPINGS)


def read_manifest(path: str, digest: str) -> WeightVersion:
    """The version that a manifest file describes; IntegrityError unless `digest` is "xxh3:" + xxh3_64 of its bytes."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ProtocolError(
            "the manifest does not exist", where=path, mend="stage the version before loading it"
        ) from error
    found = "xxh3:" + xxhash.xxh3_64_hexdigest(content)
    if found != digest:
        raise IntegrityError(
            f"manifest: expected digest {digest}, found {found}", where=path, mend="stage the version again"
        )
    return loads(WeightVersion, content.decode())


def load_version(model: torch.nn.Module, version: WeightVersion, mappings: Mappings | None = None) -> None:
    """Give every tensor of `version` to `model.load_weights`; afterwards no parameter holds anything else.

    `mappings`: where arenas stay mapped for the next version; without it they are let go of afterwards.
    """
    marks = _marks(model)
    for mark in marks:
        mark.rows.fill_(float("nan"))
    kept = mappings if mappings is not None else Mappings()
    try:
        load_weights: Any = model.load_weights
        load_weights(WeightReader(version, kept).tensors())
    finally:
        if mappings is None:
            kept.close()
    if missed := _still_marked(marks):
        if name := _not_a_number(version):
            raise IntegrityError(
                f"{name} holds NaN as it was published",
                where=f"version {version.version}",
                mend="see the trainer's log",
            )
        raise ProtocolError(
            f"{len(missed)} parameters of the engine were not (wholly) written, for instance {missed[0]}",
            where=f"version {version.version}",
            mend="check that trainer and engine have the same model configuration",
        )


def _not_a_number(version: WeightVersion) -> str:
    """Name of a published tensor that holds a NaN; empty when none does. Read only when a load has failed."""
    with contextlib.closing(Mappings()) as kept:
        for name, tensor in WeightReader(version, kept).tensors():
            if bool(tensor.isnan().any()):
                return name
    return ""


@dataclass(frozen=True, slots=True, eq=False)
class _Mark:
    """Elements of a parameter that are NaN before the load. `rows` is a view, to write and to read through."""

    name: str
    parameter: torch.Tensor
    rows: torch.Tensor
    place: int  # address of the memory that `rows` shows


def _marks(model: torch.nn.Module) -> list[_Mark]:
    found = []
    for name, parameter in model.named_parameters():
        rows = _marked_rows(parameter)
        if rows is not None:
            found.append(_Mark(name, parameter, rows, parameter.data_ptr()))
    return found


def _marked_rows(parameter: torch.Tensor) -> torch.Tensor | None:
    """First element of up to `_MARKS` rows, evenly spread; None where there is no NaN."""
    if not parameter.is_floating_point() or parameter.numel() == 0:
        return None
    flat = parameter.data if parameter.dim() == 1 else parameter.data.flatten(1)[:, 0]
    return flat[:: max(1, flat.shape[0] // _MARKS)]


def _still_marked(marks: list[_Mark]) -> list[str]:
    """Names of the parameters that hold a NaN where they were marked: one look at all, closer looks when it finds
    one.
    """
    rows = [(mark.name, _rows_now(mark)) for mark in marks]
    kinds = {(one.dtype, one.device) for _, one in rows}
    if not any(
        bool(torch.cat([one for _, one in rows if (one.dtype, one.device) == kind]).isnan().any()) for kind in kinds
    ):
        return []
    return [name for name, one in rows if bool(one.isnan().any())]


def _rows_now(mark: _Mark) -> torch.Tensor:
    """The same rows after the load, also when the model has put other memory in the parameter's place."""
    if mark.parameter.data_ptr() == mark.place:
        return mark.rows
    rows = _marked_rows(mark.parameter)
    return mark.rows if rows is None else rows
