"""OPT: layer norms and biases everywhere, ReLU without a gate, learned positions (transformers `models/opt`).

Only the form with the norms before attention and feed-forward (`do_layer_norm_before`); `shape.py` refuses the other.
"""

from __future__ import annotations

from twinpod.trainer.convert.layout import FamilyParts, Layer, Part, Rows, query_key_value


def layer_parts(layer: Layer) -> tuple[Part, ...]:
    """All tensors of one layer. `final_layer_norm` is the norm before the feed-forward layer, of each layer."""
    hidden, naming = layer.shape.hidden, layer.naming
    return (
        layer.replicated("self_attn_layer_norm.weight", naming.attention_norm, hidden),
        layer.replicated("self_attn_layer_norm.bias", naming.attention_norm_bias, hidden),
        *query_key_value(layer, bias=True),
        layer.columns("self_attn.out_proj.weight", "self_attention.linear_proj.weight", hidden),
        layer.replicated("self_attn.out_proj.bias", "self_attention.linear_proj.bias", hidden),
        layer.replicated("final_layer_norm.weight", naming.mlp_norm, hidden),
        layer.replicated("final_layer_norm.bias", naming.mlp_norm_bias, hidden),
        *_feed_forward(layer),
    )


def _feed_forward(layer: Layer) -> tuple[Part, ...]:
    width = layer.shape.ffn // layer.place.tp_size
    whole = Rows(groups=1, block=width, start=0, stop=width)
    return (
        layer.rows("fc1.weight", "mlp.linear_fc1.weight", whole),
        layer.rows("fc1.bias", "mlp.linear_fc1.bias", whole, matrix=False),
        layer.columns("fc2.weight", "mlp.linear_fc2.weight", layer.shape.ffn),
        layer.replicated("fc2.bias", "mlp.linear_fc2.bias", layer.shape.hidden),
    )


def _positions(start: Layer) -> tuple[Part, ...]:
    """The position embedding, the rows before position 0 included."""
    rows = start.shape.max_positions + start.shape.position_offset
    return (start.replicated("embed_positions.weight", "position_embeddings.weight", rows, start.shape.hidden),)


def _final_norm(end: Layer) -> tuple[Part, ...]:
    return tuple(
        end.replicated(f"final_layer_norm.{kind}", f"final_layernorm.{kind}", end.shape.hidden)
        for kind in ("weight", "bias")
    )


PARTS = FamilyParts(prefix="model.decoder.", start=_positions, layer=layer_parts, end=_final_norm)
