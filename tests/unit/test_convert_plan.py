"""The conversion plan: tiling, names, and the rules for odd sizes.

No tensors but a few numbers to see where rows go.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from twinpod.errors import InputError
from twinpod.records.model_shape import Family, ModelShape, shape_from_huggingface
from twinpod.records.rope import Llama3Scaling, Rope
from twinpod.trainer.convert.copy import export_part, import_part
from twinpod.trainer.convert.layout import LOCAL, TRANSFORMER_ENGINE, Part
from twinpod.trainer.convert.plan import full_tensors, naming_of, plan_parts
from twinpod.trainer.place import Place, Sizes, check_sizes


def _shape(family: Family = Family.QWEN2, **changes: object) -> ModelShape:
    sizes: dict[str, object] = {
        "family": family,
        "hidden": 8,
        "layers": 4,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 6,
        "ffn": 12,
        "vocab": 13,
        "max_positions": 64,
        "norm_eps": 1e-6,
        "rope": Rope(theta=1e4),
        "tied": False,
        "init_std": 0.02,
    }
    return ModelShape(**{**sizes, **changes})  # type: ignore[arg-type]


def _places(tp: int, pp: int) -> list[Place]:
    return [Place(tp_rank=t, tp_size=tp, pp_rank=p, pp_size=pp) for t, p in itertools.product(range(tp), range(pp))]


@given(
    st.sampled_from(list(Family)),
    st.booleans(),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 40),
    st.integers(1, 3),
)
def test_owned_parts_of_all_ranks_tile_every_tensor_exactly_once(
    family: Family, tied: bool, tp: int, pp: int, vocab: int, queries: int
) -> None:
    heads = 4 if family is Family.OPT else 4 * queries
    shape = _shape(family, tied=tied, kv_heads=4, heads=heads, vocab=vocab)
    covered = {name: np.zeros(full, dtype=int) for name, full in full_tensors(shape).items()}
    for place in _places(tp, pp):
        for part in plan_parts(shape, place):
            assert part.full_shape == covered[part.name].shape
            if part.owned:
                index = tuple(
                    slice(part.start, part.stop) if axis == part.axis else slice(None)
                    for axis in range(len(part.full_shape))
                )
                covered[part.name][index] += 1
    assert all((counts == 1).all() for counts in covered.values())


@given(st.sampled_from(list(Family)), st.booleans(), st.sampled_from([1, 2]), st.sampled_from([1, 2]))
def test_every_rank_can_fill_all_its_parameters(family: Family, tied: bool, tp: int, pp: int) -> None:
    """All parts, owned or not, cover each source parameter once; only the vocabulary's padding stays."""
    shape = _shape(family, tied=tied, **({"kv_heads": 4, "head_dim": 2} if family is Family.OPT else {}))
    for place in _places(tp, pp):
        rows: dict[str, int] = {}
        for part in plan_parts(shape, place):
            rows[part.source] = rows.get(part.source, 0) + math.prod(part.shape)
        local = shape.padded_vocab(tp) // tp
        for source, count in rows.items():
            if source.endswith(("word_embeddings.weight", "output_layer.weight")):
                assert count == (min(shape.vocab, (place.tp_rank + 1) * local) - place.tp_rank * local) * shape.hidden
        groups = shape.kv_heads // tp
        assert (
            rows["decoder.layers.0.self_attention.linear_qkv.weight"]
            == groups * (shape.heads // shape.kv_heads + 2) * shape.head_dim * 8
        )
        gated = 1 if family is Family.OPT else 2
        assert rows["decoder.layers.0.mlp.linear_fc1.weight"] == gated * shape.ffn // tp * 8


def _qkv(name: str, place: Place) -> Part:
    return next(
        part
        for part in plan_parts(_shape(kv_heads=2, head_dim=1), place)
        if part.name == f"model.layers.0.self_attn.{name}.bias"
    )


@pytest.mark.parametrize(("name", "expected"), [("q_proj", [0, 1, 4, 5]), ("k_proj", [2, 6]), ("v_proj", [3, 7])])
def test_query_groups_are_taken_apart(name: str, expected: list[int]) -> None:
    """Megatron's rows with two groups of two heads of size 1: q q k v | q q k v."""
    part = _qkv(name, Place())
    out = torch.empty(part.shape)
    export_part({part.source: torch.arange(8.0)}, part, out)
    assert out.tolist() == expected
    back = torch.full((8,), -1.0)
    import_part({part.source: back}, part, out)
    assert back[back >= 0].tolist() == expected


def test_tensor_parallel_ranks_hold_whole_groups() -> None:
    part = _qkv("q_proj", Place(tp_rank=1, tp_size=2))
    assert (part.axis, part.start, part.stop, part.full_shape) == (0, 2, 4, (4,))


def test_names_of_both_layer_specs() -> None:
    sources = {
        naming: {part.source for part in plan_parts(_shape(), Place(), naming)}
        for naming in (LOCAL, TRANSFORMER_ENGINE)
    }
    assert sources[LOCAL] - sources[TRANSFORMER_ENGINE] == {
        f"decoder.layers.{i}.{name}"
        for i in range(4)
        for name in ("input_layernorm.weight", "pre_mlp_layernorm.weight")
    }
    assert sources[TRANSFORMER_ENGINE] - sources[LOCAL] == {
        f"decoder.layers.{i}.{name}"
        for i in range(4)
        for name in ("self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight")
    }
    assert naming_of(sources[LOCAL]) is LOCAL
    assert naming_of(sources[TRANSFORMER_ENGINE]) is TRANSFORMER_ENGINE


def test_layer_norms_have_biases_under_both_layer_specs() -> None:
    opt = _shape(Family.OPT, kv_heads=4, head_dim=2, layers=1)
    sources = [{part.source for part in plan_parts(opt, Place(), naming)} for naming in (LOCAL, TRANSFORMER_ENGINE)]
    assert sources[0] - sources[1] == {
        f"decoder.layers.0.{norm}.{kind}"
        for norm in ("input_layernorm", "pre_mlp_layernorm")
        for kind in ("weight", "bias")
    }
    assert sources[1] - sources[0] == {
        f"decoder.layers.0.{linear}.layer_norm_{kind}"
        for linear in ("self_attention.linear_qkv", "mlp.linear_fc1")
        for kind in ("weight", "bias")
    }


def test_tensors_of_opt_are_those_of_transformers() -> None:
    config = transformers.OPTConfig(**OPT_CONFIG, tie_word_embeddings=False)
    expected = {name: tuple(x.shape) for name, x in transformers.OPTForCausalLM(config).state_dict().items()}
    assert full_tensors(shape_from_huggingface({**config.to_dict(), "architectures": ["OPTForCausalLM"]})) == expected
    assert expected["model.decoder.embed_positions.weight"] == (64 + 2, 8)


def test_tied_embedding_is_loaded_at_both_ends_and_exported_once() -> None:
    shape = _shape(tied=True)
    first, last = (plan_parts(shape, place) for place in _places(1, 2))
    embedding = [part for part in (*first, *last) if part.name == "model.embed_tokens.weight"]
    assert [(part.source, part.owned) for part in embedding] == [
        ("embedding.word_embeddings.weight", True),
        ("output_layer.weight", False),
    ]
    assert "lm_head.weight" not in full_tensors(shape)


@pytest.mark.parametrize(
    ("sizes", "ranks", "message"),
    [
        (Sizes(tensor=3), 3, "spec.hybrid.trainer.tensorParallel: 3 does not divide the model's 4 attention heads"),
        (Sizes(tensor=4), 4, "spec.hybrid.trainer.tensorParallel: 4 does not divide the model's 2 key-value heads"),
        (Sizes(pipeline=3), 3, "spec.hybrid.trainer.pipelineParallel: 3 does not divide the model's 4 layers"),
        (Sizes(tensor=2, pipeline=2), 6, "6 ranks cannot hold copies of 2 x 2"),
        (Sizes(expert=2), 2, "models with experts are not supported yet"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(sizes: Sizes, ranks: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_sizes(_shape(), sizes, ranks)


OPT_CONFIG: dict[str, Any] = {
    "architectures": ["OPTForCausalLM"],
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 12,
    "vocab_size": 13,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
}


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_shape_reads_old_and_new_rope_fields() -> None:
    new = {**CONFIG, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    assert shape_from_huggingface({**CONFIG, "rope_theta": 5e5}).rope == Rope(theta=5e5)
    assert shape_from_huggingface(new).rope == Rope(theta=1e6)
    llama3 = Llama3Scaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8192)
    assert shape_from_huggingface({**CONFIG, "rope_scaling": LLAMA3}).rope == Rope(theta=1e4, scaling=llama3)
    assert shape_from_huggingface(CONFIG).head_dim == 16
    assert shape_from_huggingface({**CONFIG, "head_dim": None, "num_key_value_heads": None}).kv_heads == 4


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({}, 2048),
        ({"architectures": ["Qwen3ForCausalLM"]}, 32768),
        ({"max_position_embeddings": 131072, "rope_scaling": LLAMA3}, 131072),
        ({"max_position_embeddings": 40960, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 163840),
        (
            {
                "max_position_embeddings": 40960,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
    ],
)
def test_the_context_is_that_of_the_stretched_model(config: dict[str, object], positions: int) -> None:
    assert shape_from_huggingface({**CONFIG, **config}).max_positions == positions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures: the trainer knows LlamaForCausalLM"),
        ({"hidden_size": None}, "hidden_size: must be a whole number above 0"),
        (
            {"rope_scaling": {"rope_type": "longrope"}},
            "rope_type: is 'longrope', .*; use .* one of default, llama3",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "4"}}, "parameters.factor: is '4'; must be a number above 0"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "parameters.low_freq_factor: is missing; must be a n"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1}}, "high_freq_factor: is 1; must be above low_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: is 0.5; the trainer rotates whole heads"),
        ({"head_dim": 15}, "head_dim: is 15; rotary positions need an even size"),
        ({"num_key_value_heads": "2"}, "num_key_value_heads: must be a whole number above 0, not '2'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: holds sliding_attention; the trainer"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantization_config: the weights are quantised \(fp8\)"),
        ({"attention_bias": True}, "attention_bias: is on"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported"),
    ],
)
def test_configs_that_the_trainer_cannot_honour_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        shape_from_huggingface({**CONFIG, **change})


def test_opt_is_tied_unless_it_says_otherwise() -> None:
    shape = shape_from_huggingface(OPT_CONFIG)
    assert (shape.tied, shape.kv_heads, shape.head_dim, shape.position_offset) == (True, 4, 2, 2)
    assert not shape_from_huggingface({**OPT_CONFIG, "tie_word_embeddings": False}).tied
    assert shape_from_huggingface({**OPT_CONFIG, "word_embed_proj_dim": 8, "dropout": 0.1}) == shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"word_embed_proj_dim": 4}, "word_embed_proj_dim: 4 is not supported by the trainer; use 8"),
        ({"do_layer_norm_before": False}, "do_layer_norm_before: False is not supported by the trainer; use true"),
        ({"activation_function": "gelu"}, "activation_function: 'gelu' is not"),
        ({"enable_bias": False}, "enable_bias: False is not"),
        ({"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine: False is not"),
        ({"_remove_final_layer_norm": True}, "_remove_final_layer_norm: True is not"),
        ({"ffn_dim": None}, "ffn_dim: must be a whole number above 0"),
        ({"num_attention_heads": 3}, "hidden_size: 8 is not divisible by 3 heads"),
    ],
)
def test_forms_of_opt_that_the_trainer_lacks_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        shape_from_huggingface({**OPT_CONFIG, **change})
