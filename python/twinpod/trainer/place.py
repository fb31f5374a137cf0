"""Where a rank stands among the ranks of a layout. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from twinpod.errors import InputError
from twinpod.records.model_shape import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Parallel sizes of the trainer, from the job; `data` follows from the number of ranks."""

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1

    def model_ranks(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Coordinates of one rank; each `*_rank` is below its `*_size`."""

    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1
    dp_rank: int = 0
    dp_size: int = 1

    @property
    def first_stage(self) -> bool:
        """True where the token embedding lives."""
        return self.pp_rank == 0

    @property
    def last_stage(self) -> bool:
        """True where the output layer lives."""
        return self.pp_rank == self.pp_size - 1


def check_sizes(shape: ModelShape, sizes: Sizes, ranks: int) -> None:
    """Refuse a layout that does not fit the model or the number of ranks; one InputError names the field."""
    if sizes.expert != 1:
        raise InputError(
            f"is {sizes.expert}, but models with experts are not supported yet",
            where="expert parallel size",
            mend="use 1",
        )
    for what, value in (
        ("attention heads", shape.heads),
        ("key-value heads", shape.kv_heads),
        ("intermediate size", shape.ffn),
    ):
        if value % sizes.tensor:
            raise InputError(
                f"{sizes.tensor} does not divide the model's {value} {what}", where="spec.hybrid.trainer.tensorParallel"
            )
    if shape.layers % sizes.pipeline:
        raise InputError(
            f"{sizes.pipeline} does not divide the model's {shape.layers} layers",
            where="spec.hybrid.trainer.pipelineParallel",
        )
    if ranks % sizes.model_ranks():
        raise InputError(
            f"{ranks} ranks cannot hold copies of {sizes.tensor} x {sizes.pipeline} (tensor x pipeline) ranks each",
            where="spec.hybrid",
            mend=f"use a multiple of {sizes.model_ranks()} accelerators",
        )
