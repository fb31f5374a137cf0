"""Nouns and shared rules of the conversion plan. Pure: no torch.

How Megatron-core 0.16 lays out what Hugging Face keeps apart (checked against its source):

- `self_attention.linear_qkv` (transformer/attention.py, `get_query_key_value_tensors`): rows are grouped by *query
  group* (one key-value head): `[q heads of the group, k, v]` a group; a tensor-parallel rank holds whole groups, in
  order.
- `mlp.linear_fc1` (transformer/mlp.py, `bias_swiglu`): on each rank the gate's rows, then the up projection's rows;
  without a gate (OPT) the up projection's rows alone.
- Column-parallel layers split rows (axis 0), row-parallel layers (`linear_proj`, `linear_fc2`) columns (axis 1); the
  bias of the latter is whole on every rank.
- The embedding is padded so that tensor-parallel ranks hold equal parts; the padding is past the real vocabulary.
- With tied embeddings and more than one pipeline stage, the last stage keeps a copy of the embedding as
  `output_layer.weight`: it is loaded there, but exported by the first stage only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from twinpod.records.model_shape import ModelShape
from twinpod.trainer.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """Names that differ between Megatron's local and Transformer Engine layer specs, under `decoder.layers.N.`.

    Transformer Engine fuses the norm into the linear layer after it (extensions/transformer_engine.py,
    `TELayerNormColumnParallelLinear`).
    """

    attention_norm: str
    attention_norm_bias: str
    mlp_norm: str
    mlp_norm_bias: str


LOCAL = Naming(
    attention_norm="input_layernorm.weight",
    attention_norm_bias="input_layernorm.bias",
    mlp_norm="pre_mlp_layernorm.weight",
    mlp_norm_bias="pre_mlp_layernorm.bias",
)
TRANSFORMER_ENGINE = Naming(
    attention_norm="self_attention.linear_qkv.layer_norm_weight",
    attention_norm_bias="self_attention.linear_qkv.layer_norm_bias",
    mlp_norm="mlp.linear_fc1.layer_norm_weight",
    mlp_norm_bias="mlp.linear_fc1.layer_norm_bias",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Which rows of a Megatron parameter: seen as `[groups, block, ...]`, the rows `[:, start:stop]`."""

    groups: int
    block: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A rank's part of one Hugging Face tensor, and where it lies in the rank's Megatron parameter.

    The part is `[start, stop)` of `axis` of the full tensor, or all of it when `axis` is None. `owned` is False for
    what another rank writes out (replicated norms beyond tensor rank 0, the last stage's copy of a tied embedding).
    """

    name: str
    full_shape: tuple[int, ...]
    axis: int | None
    start: int
    stop: int
    source: str
    rows: Rows | None  # None: the whole parameter
    owned: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part alone."""
        if self.axis is None:
            return self.full_shape
        return (*self.full_shape[: self.axis], self.stop - self.start, *self.full_shape[self.axis + 1 :])


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One transformer layer of this rank: its Hugging Face prefix and Megatron prefix, and what the rules need.

    The ends of the model, before the first layer and after the last, are given as a layer as well.
    """

    shape: ModelShape
    place: Place
    naming: Naming
    target: str  # e.g. "model.layers.7."
    source: str  # e.g. "decoder.layers.3."

    def replicated(self, name: str, source: str, *full_shape: int) -> Part:
        """A tensor that every tensor-parallel rank has; the first one owns it."""
        return Part(
            name=self.target + name,
            full_shape=full_shape,
            axis=None,
            start=0,
            stop=full_shape[0],
            source=self.source + source,
            rows=None,
            owned=self.place.tp_rank == 0,
        )

    def columns(self, name: str, source: str, inputs: int) -> Part:
        """A row-parallel weight `[hidden, inputs]`: this rank has a range of its columns."""
        width = inputs // self.place.tp_size
        start = self.place.tp_rank * width
        return Part(
            name=self.target + name,
            full_shape=(self.shape.hidden, inputs),
            axis=1,
            start=start,
            stop=start + width,
            source=self.source + source,
            rows=None,
            owned=True,
        )

    def rows(self, name: str, source: str, rows: Rows, *, matrix: bool = True) -> Part:
        """Rows of a column-parallel weight `[.., hidden]` (its bias when not `matrix`), fused in `source`."""
        count = rows.groups * (rows.stop - rows.start)
        full = count * self.place.tp_size
        return Part(
            name=self.target + name,
            full_shape=(full, self.shape.hidden) if matrix else (full,),
            axis=0,
            start=self.place.tp_rank * count,
            stop=(self.place.tp_rank + 1) * count,
            source=self.source + source,
            rows=rows,
            owned=True,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyParts:
    """The tensors of a family: `prefix` begins every name but that of an output layer of its own.

    `start` lists what the first stage has beside the token embedding, `end` what the last has before the output layer.
    """

    prefix: str
    start: Callable[[Layer], tuple[Part, ...]]
    layer: Callable[[Layer], tuple[Part, ...]]
    end: Callable[[Layer], tuple[Part, ...]]


def rotary_family(layer: Callable[[Layer], tuple[Part, ...]]) -> FamilyParts:
    """A family in the manner of Llama: no learned positions, one RMS norm at the end."""
    return FamilyParts(prefix="model.", start=lambda start: (), layer=layer, end=_final_rms_norm)


def _final_rms_norm(end: Layer) -> tuple[Part, ...]:
    return (end.replicated("norm.weight", "final_layernorm.weight", end.shape.hidden),)


def attention(layer: Layer, *, bias: bool) -> tuple[Part, ...]:
    """q, k, v (with biases where the family has them) and the output projection of one layer."""
    inputs = layer.shape.heads * layer.shape.head_dim
    out = layer.columns("self_attn.o_proj.weight", "self_attention.linear_proj.weight", inputs)
    return (*query_key_value(layer, bias=bias), out)


def query_key_value(layer: Layer, *, bias: bool) -> tuple[Part, ...]:
    """q, k, v of one layer, out of their fused parameter."""
    shape = layer.shape
    groups = shape.kv_heads // layer.place.tp_size
    queries = shape.heads // shape.kv_heads * shape.head_dim
    block = queries + 2 * shape.head_dim
    cuts = {"q": (0, queries), "k": (queries, queries + shape.head_dim), "v": (queries + shape.head_dim, block)}
    kinds = ("weight", "bias") if bias else ("weight",)
    return tuple(
        layer.rows(
            f"self_attn.{which}_proj.{kind}",
            f"self_attention.linear_qkv.{kind}",
            Rows(groups=groups, block=block, start=start, stop=stop),
            matrix=kind == "weight",
        )
        for which, (start, stop) in cuts.items()
        for kind in kinds
    )


def gated_mlp(layer: Layer) -> tuple[Part, ...]:
    """gate, up and down projections of one layer."""
    width = layer.shape.ffn // layer.place.tp_size
    gate = Rows(groups=1, block=2 * width, start=0, stop=width)
    up = Rows(groups=1, block=2 * width, start=width, stop=2 * width)
    return (
        layer.rows("mlp.gate_proj.weight", "mlp.linear_fc1.weight", gate),
        layer.rows("mlp.up_proj.weight", "mlp.linear_fc1.weight", up),
        layer.columns("mlp.down_proj.weight", "mlp.linear_fc2.weight", layer.shape.ffn),
    )


def norms(layer: Layer) -> tuple[Part, ...]:
    """The two RMS norms of one layer."""
    return (
        layer.replicated("input_layernorm.weight", layer.naming.attention_norm, layer.shape.hidden),
        layer.replicated("post_attention_layernorm.weight", layer.naming.mlp_norm, layer.shape.hidden),
    )
