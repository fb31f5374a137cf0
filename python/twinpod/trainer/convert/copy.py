"""Moves the bytes that a plan describes. Writes straight into the given views: no hidden copy of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from twinpod.errors import InputError
from twinpod.trainer.convert.layout import Part


def megatron_view(parameters: Mapping[str, Tensor], part: Part) -> Tensor:
    """The part inside its Megatron parameter: a view `[groups, rows, ...]`, or the whole parameter. No copy."""
    parameter = parameters[part.source].detach()
    if part.rows is None:
        return parameter
    rows = part.rows
    grouped = parameter.view(rows.groups, rows.block, *parameter.shape[1:])
    return grouped[:, rows.start : rows.stop]


def export_part(parameters: Mapping[str, Tensor], part: Part, out: Tensor) -> None:
    """Write the part, in Hugging Face layout, into `out` (shape `part.shape`, contiguous)."""
    view = megatron_view(parameters, part)
    out.view(view.shape).copy_(view)


def import_part(parameters: Mapping[str, Tensor], part: Part, full: Tensor) -> None:
    """Take the part out of the full Hugging Face tensor into its Megatron parameter."""
    if tuple(full.shape) != part.full_shape:
        raise InputError(
            f"has shape {tuple(full.shape)}, config.json makes it {part.full_shape}",
            where=part.name,
            mend="use the config.json that belongs to these weights",
        )
    import_local(
        parameters, part, full if part.axis is None else full.narrow(part.axis, part.start, part.stop - part.start)
    )


def import_local(parameters: Mapping[str, Tensor], part: Part, piece: Tensor) -> None:
    """Write the part itself (shape `part.shape`) into its Megatron parameter."""
    view = megatron_view(parameters, part)
    view.copy_(piece.reshape(view.shape))


def begin_import(parameters: Mapping[str, Tensor], parts: Iterable[Part]) -> None:
    """Before parts are written: every parameter has one, and the vocabulary's padding becomes zero."""
    missing = parameters.keys() - {part.source for part in parts}
    if missing:
        raise InputError(
            f"no Hugging Face tensor is known for {sorted(missing)}",
            where="converter",
            mend="add it to twinpod/trainer/convert/",
        )
    for parameter in parameters.values():
        parameter.detach().zero_()


def import_all(parameters: Mapping[str, Tensor], parts: Iterable[Part], read: Callable[[str], Tensor]) -> None:
    """Load every part (owned or not).

    `read` gives a full Hugging Face tensor by name.
    """
    parts = tuple(parts)
    with torch.no_grad():
        begin_import(parameters, parts)
        for part in parts:
            import_part(parameters, part, read(part.name))


def export_all(parameters: Mapping[str, Tensor], parts: Iterable[Part]) -> dict[str, Tensor]:
    """The owned parts as new CPU tensors (for snapshots and tests; publishing writes into an arena instead)."""
    exported: dict[str, Tensor] = {}
    for part in parts:
        if part.owned:
            exported[part.name] = torch.empty(part.shape, dtype=parameters[part.source].dtype)
            export_part(parameters, part, exported[part.name])
    return exported
