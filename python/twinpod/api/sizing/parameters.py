"""How many parameters there are, and on which rank: the tensors of Megatron's layers, by their sizes.

Tensor parallelism splits matrices, pipeline parallelism layers; norms are on every rank
(`twinpod.trainer.convert.layout` tells how; a test compares the two).
"""

from __future__ import annotations

from twinpod.records.model_shape import ModelShape


def layer_tensors(shape: ModelShape, tensor: int) -> tuple[int, ...]:
    """Elements of each parameter of one layer on a rank."""
    hidden, inner = shape.hidden, shape.heads * shape.head_dim
    qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim // tensor
    first = shape.ffn * (1 if shape.plain else 2) // tensor
    matrices = (qkv * hidden, inner // tensor * hidden, first * hidden, shape.ffn // tensor * hidden)
    norms = (hidden,) * (4 if shape.plain else 2) + ((shape.head_dim,) * 2 if shape.qk_norm else ())
    biases: tuple[int, ...] = (qkv, hidden, first, hidden) if shape.plain else (qkv,) if shape.qkv_bias else ()
    return matrices + norms + biases


def stage_tensors(shape: ModelShape, tensor: int, pipeline: int, stage: int) -> tuple[int, ...]:
    """Elements of each parameter of the ranks of a pipeline stage."""
    found = layer_tensors(shape, tensor) * (shape.layers // pipeline)
    rows = shape.padded_vocab(tensor) // tensor
    first, last = stage == 0, stage == pipeline - 1
    if first:
        found += (rows * shape.hidden,)
        if shape.plain:
            found += ((shape.max_positions + shape.position_offset) * shape.hidden,)
    if last:
        found += (shape.hidden,) * (2 if shape.plain else 1)
        if not shape.tied or not first:
            found += (rows * shape.hidden,)
    return found


def total(shape: ModelShape) -> int:
    """Parameters of the whole model."""
    return sum(stage_tensors(shape, 1, 1, 0))
