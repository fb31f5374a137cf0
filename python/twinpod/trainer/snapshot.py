"""Durable resume state: the weights, the iteration and the version, by torch.distributed.checkpoint (DCP).

Tensors are kept under their Hugging Face names as parts of global tensors, so a snapshot of one layout is resumed in
any other. They are the main weights: float32, also of a run in bfloat16, so that a resume goes on as if it had never
stopped; an older snapshot that holds bfloat16 is read as it is. DCP's `CheckpointableTensor` (torch 2.14,
distributed/checkpoint/protocol.py) is four attributes on a plain tensor; no DTensor is needed. There is no moment of
the optimizer in it: each iteration starts without a past (paper.md section 5). There is no random state either: after
the first weights nothing in a trainer draws random numbers (dropout is 0).

The folder is written beside its final name and renamed into place: it exists whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from twinpod.errors import EnvironmentFault, InputError, IntegrityError, NumericsError
from twinpod.records.codec import dumps, loads
from twinpod.trainer.convert.copy import export_part, import_local
from twinpod.trainer.convert.layout import Part
from twinpod.trainer.convert.plan import naming_of, plan_parts
from twinpod.trainer.finite import first_not_finite
from twinpod.trainer.folders import begin_folder, finish_folder, partial_name
from twinpod.trainer.megatron import RankModel
from twinpod.trainer.optimizer import Weights, fill
from twinpod.trainer.wire import Control

NOTE = "snapshot.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotNote:
    """What a snapshot is of."""

    iteration: int  # iterations trained into the weights
    version: int  # weight version


def save_snapshot(rank: RankModel, control: Control, folder: Path, *, iteration: int, version: int) -> None:
    """Write the folder. Collective over all ranks; needs a file system that all of them see."""
    parts = plan_parts(rank.shape, rank.place, naming_of(rank.parameters))
    owned = [part for part in parts if part.owned and rank.place.dp_rank == 0]
    state: dict[str, Tensor] = {}
    weights = rank.optimizer.gather()
    for part in owned:
        state[part.name] = _shard(part, weights[part.source].dtype)
        export_part(weights, part, state[part.name])
    _require_finite(state, control, folder)
    leader = control.rank == 0
    control.together(str(folder), partial(begin_folder, folder) if leader else None)
    try:
        writer = dcp.FileSystemWriter(partial_name(folder), sync_files=False)
        dcp.save(state, storage_writer=writer, process_group=control.group)  # who is done waits there for who writes
    except CheckpointException as error:  # raised on all ranks alike
        raise EnvironmentFault(f"the snapshot cannot be written: {_first_failure(error)}", where=str(folder)) from error
    control.together(
        str(folder), partial(_finish, folder, SnapshotNote(iteration=iteration, version=version)) if leader else None
    )


def _require_finite(state: Mapping[str, Tensor], control: Control, folder: Path) -> None:
    """NumericsError on every rank when any of them would write a number that is not finite. Collective."""
    found = [line.decode() for line in control.gather(first_not_finite(state).encode()) if line]
    if found:
        raise NumericsError(
            f"{found[0]} holds a number that is not finite: such weights are no state to go on from", where=str(folder)
        )


def _finish(folder: Path, note: SnapshotNote) -> None:
    (partial_name(folder) / NOTE).write_text(dumps(note))
    finish_folder(folder)


def _first_failure(error: CheckpointException) -> str:
    return next((str(failure[0]) for failure in error.failures.values()), str(error))


def read_note(folder: Path) -> SnapshotNote:
    """What the snapshot in `folder` is of; InputError when there is none."""
    try:
        text = (folder / NOTE).read_text()
    except FileNotFoundError as error:
        raise InputError(
            "is not a snapshot", where=str(folder), mend="give a folder that the trainer wrote (it holds snapshot.json)"
        ) from error
    return loads(SnapshotNote, text)


def load_snapshot(rank: RankModel, control: Control, folder: Path) -> SnapshotNote:
    """Fill this rank's parameters, whatever layout wrote the folder. Collective over all ranks."""
    note = read_note(folder)
    parts = plan_parts(rank.shape, rank.place, naming_of(rank.parameters))
    saved = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    for part in parts:
        found = tuple(getattr(saved.get(part.name), "size", ()))
        if found != part.full_shape:
            raise InputError(
                f"{part.name} has shape {found}, the job's model makes it {part.full_shape}",
                where=str(folder),
                mend="resume with the model of that run",
            )
    state = {part.name: _shard(part, saved[part.name].properties.dtype) for part in parts}
    dcp.load(state, storage_reader=dcp.FileSystemReader(folder), process_group=control.group)

    if name := first_not_finite(state):
        raise IntegrityError(
            f"{name} holds a number that is not finite",
            where=str(folder),
            mend="remove this snapshot, so that the run goes on from the one before it",
        )

    def read(weights: Weights) -> None:
        for tensor in weights.values():
            tensor.detach().zero_()
        for part in parts:
            import_local(weights, part, state[part.name])

    fill(rank.optimizer, read)
    return note


def _shard(part: Part, dtype: torch.dtype) -> Tensor:
    """An empty tensor for a part that tells DCP where it lies in its full tensor."""
    tensor = torch.empty(part.shape, dtype=dtype)
    offsets = [0] * len(part.shape)
    if part.axis is not None:
        offsets[part.axis] = part.start
    for name, value in {
        "global_shape": part.full_shape,
        "global_offsets": (tuple(offsets),),
        "local_offsets": ((0,) * len(part.shape),),
        "local_sizes": (part.shape,),
    }.items():
        setattr(tensor, name, value)
    return tensor
