"""Which parts of which Hugging Face tensors a rank holds. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from twinpod.records.model_shape import Family, ModelShape
from twinpod.trainer.convert import llama, opt, qwen2, qwen3
from twinpod.trainer.convert.layout import (
    LOCAL,
    TRANSFORMER_ENGINE,
    FamilyParts,
    Layer,
    Naming,
    Part,
    Rows,
    rotary_family,
)
from twinpod.trainer.place import Place

FAMILIES: dict[Family, FamilyParts] = {
    Family.LLAMA: rotary_family(llama.layer_parts),
    Family.QWEN2: rotary_family(qwen2.layer_parts),
    Family.QWEN3: rotary_family(qwen3.layer_parts),
    Family.OPT: opt.PARTS,
}


def plan_parts(shape: ModelShape, place: Place, naming: Naming = LOCAL) -> tuple[Part, ...]:
    """Every part that the rank at `place` holds, owned or not, in the order of the model."""
    family = FAMILIES[shape.family]
    tokens = family.prefix + "embed_tokens.weight"

    def layer(target: str, source: str) -> Layer:
        return Layer(shape=shape, place=place, naming=naming, target=family.prefix + target, source=source)

    parts: list[Part] = []
    if place.first_stage:
        parts.append(_vocabulary(shape, place, tokens, "embedding.word_embeddings.weight", owned=True))
        parts.extend(family.start(layer("", "embedding.")))
    count = shape.layers // place.pp_size
    for local in range(count):
        parts.extend(family.layer(layer(f"layers.{place.pp_rank * count + local}.", f"decoder.layers.{local}.")))
    if place.last_stage:
        parts.extend(family.end(layer("", "decoder.")))
        parts.extend(_output(shape, place, tokens))
    return tuple(parts)


def _output(shape: ModelShape, place: Place, tokens: str) -> Iterable[Part]:
    if not shape.tied:
        yield _vocabulary(shape, place, "lm_head.weight", "output_layer.weight", owned=True)
    elif not place.first_stage:
        yield _vocabulary(shape, place, tokens, "output_layer.weight", owned=False)


def _vocabulary(shape: ModelShape, place: Place, name: str, source: str, *, owned: bool) -> Part:
    """A `[vocab, hidden]` matrix split by rows; the padding rows of the last rank belong to nobody."""
    width = shape.padded_vocab(place.tp_size) // place.tp_size
    start = min(place.tp_rank * width, shape.vocab)
    stop = min(start + width, shape.vocab)
    return Part(
        name=name,
        full_shape=(shape.vocab, shape.hidden),
        axis=0,
        start=start,
        stop=stop,
        source=source,
        rows=Rows(groups=1, block=width, start=0, stop=stop - start),
        owned=owned,
    )


def full_tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Every Hugging Face tensor of the model and its full shape, in the order of the model."""
    return {part.name: part.full_shape for part in plan_parts(shape, Place()) if part.owned}


def naming_of(parameter_names: Iterable[str]) -> Naming:
    """Which layer spec made these parameters; both are recognised by the norm of the attention."""
    fused = any(name.endswith(TRANSFORMER_ENGINE.attention_norm) for name in parameter_names)
    return TRANSFORMER_ENGINE if fused else LOCAL
