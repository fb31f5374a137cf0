"""What a forward pass keeps for the backward pass, and what is needed beside it for a moment.

The count of Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (2022), section 4,
tensor by tensor, with three differences: grouped queries make keys and values smaller, a gated feed-forward layer
keeps gate, up and product, and there is no dropout here, so no masks. For a plain layer with as many key-value heads as
heads and ffn = 4 hidden it gives that paper's 34 - 2 bytes a token and unit of hidden size in bfloat16.

Two kinds of attention: fused (Transformer Engine, on accelerators) keeps its inputs, output and one number a head and
position; local (Megatron's own, on a CPU, or by `layerSpec`) keeps the probabilities, heads x length a token.
"""

from __future__ import annotations

from dataclasses import dataclass

from twinpod.api.sizing.nouns import Setup

FLOAT = 4
CHUNK_BYTES = {
    "cpu": 64 << 20,
    "cuda": 256 << 20,
}  # float32 logits of a chunk (`twinpod.trainer.logps`; a test compares)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Bytes of one micro-batch on one rank."""

    layers: int  # kept by the layers of the fullest stage until the backward pass, all micro-batches in flight
    working: int  # the layer at work: what it makes again, gradients on their way


def kept(setup: Setup, tokens: int) -> Kept:
    """For micro-batches of `tokens` padded tokens, each sequence at most the context long."""
    shape, length = setup.shape, min(tokens, setup.context)
    full = _layer(setup, length)
    boundary = shape.hidden * setup.item // (setup.tensor if setup.sequence_parallel else 1)
    if setup.recompute == "Full":
        a_token, again = boundary, full
    elif setup.recompute == "Selective":
        again = _selected(setup, length)
        a_token = full - again
    else:
        a_token, again = full, 0
    in_flight = shape.layers  # first stage of 1F1B: layers / pipeline, pipeline micro-batches in flight
    return Kept(layers=tokens * in_flight * a_token, working=tokens * (again + _gradients(setup, length)))


def _layer(setup: Setup, length: int) -> int:
    """Bytes a token that one layer keeps on one rank."""
    whole, split = (_local_layer if setup.local_layers else _fused_layer)(setup)
    return whole // (setup.tensor if setup.sequence_parallel else 1) + split // setup.tensor + _scores(setup, length)


def _selected(setup: Setup, length: int) -> int:
    """Bytes a token of what Selective makes again: gated MLPs, and scores of attention that is not fused."""
    shape = setup.shape
    mlp = 0 if shape.plain else 5 * shape.ffn // setup.tensor * setup.item
    return mlp + (_scores(setup, length) if setup.local_layers or shape.plain else 0)


def _fused_layer(setup: Setup) -> tuple[int, int]:
    """Bytes a token of (what every tensor-parallel rank has, what they divide), with Transformer Engine."""
    shape = setup.shape
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    split = 2 * queries + 2 * keys  # into the attention: queries, keys; out of it; values are a view of the next
    split += 0 if shape.plain else queries + keys  # the projection before it is rotated
    split += queries if shape.qk_norm else 0
    split += shape.ffn * (
        2 if shape.plain else 5
    )  # into the activation, its steps, out of it; a gate doubles the first
    return 4 * shape.hidden * setup.item, split * setup.item  # into and out of the two norms


def _local_layer(setup: Setup) -> tuple[int, int]:
    """The same with Megatron's own layers: norms are steps in float32, grouped keys and values are repeated."""
    shape = setup.shape
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    projection = queries + 2 * keys
    grouped = shape.heads != shape.kv_heads
    split = 4 * queries if grouped else 2 * queries + projection + (0 if shape.plain else keys)
    if shape.plain:
        split = queries + projection
    if shape.qk_norm:
        split += projection if grouped else 0
    split += shape.ffn * (2 if shape.plain else 5)
    norms = (2 if shape.plain else 4) * shape.hidden * FLOAT
    heads = (2 * queries + keys) * FLOAT if shape.qk_norm else 0
    return norms + 2 * shape.hidden * setup.item, split * setup.item + heads


def _scores(setup: Setup, length: int) -> int:
    """Bytes a token of what attention keeps beside its inputs and output: probabilities, or one number a head."""
    heads = setup.shape.heads // setup.tensor
    if not setup.local_layers:
        return heads * FLOAT
    return heads * length * (FLOAT + (setup.item if setup.item < FLOAT else 0))


def _gradients(setup: Setup, length: int) -> int:
    """Bytes a token of gradients on their way through one layer."""
    shape = setup.shape
    inner = shape.ffn * (1 if shape.plain else 3) // setup.tensor
    scores = 2 * FLOAT * shape.heads // setup.tensor * length if setup.local_layers else 0
    return max((2 * shape.hidden + inner) * setup.item, 2 * shape.hidden * setup.item + scores)


def logits(setup: Setup, tokens: int) -> int:
    """Bytes of the logits that exist at once: a chunk in float32, twice more where they are computed in half."""
    rows = -(-setup.shape.vocab // setup.tensor)
    chunk = min(tokens * rows * FLOAT, CHUNK_BYTES["cpu" if setup.on_cpu else "cuda"])
    return chunk if setup.item == FLOAT else 2 * chunk
