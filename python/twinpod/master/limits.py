"""What a model folder and the data can take, checked before anything starts: by `twinpod validate`, by the local start
and by the master in its first second. Reads config.json, the tokenizer and the headers of the weights, never their
data.

Whatever is wrong is an InputError with the field or file, the number, and the largest number that fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twinpod.api.model_folder import hf_config
from twinpod.api.pods import InferenceSpec
from twinpod.api.safetensors_header import Stored, stored_tensors
from twinpod.api.types import RLJob
from twinpod.errors import InputError
from twinpod.records.model_shape import ModelShape, shape_from_huggingface
from twinpod.records.rollout import Prompt
from twinpod.sampling.items import Item
from twinpod.trainer.convert.plan import full_tensors
from twinpod.trainer.place import Sizes, check_sizes

# Of the context and of the cache SGLang leaves so many tokens out: it takes no prompt of min(context, cache) - 6 tokens
# (managers/tp_worker.py: max_req_len, max_req_input_len; managers/utils.py: validate_input_length), and a trajectory
# that was cut one token before its end comes back as a prompt.
RESERVED = 6
TRAINABLE = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Longest:
    """The longest prompt: its length in tokens, special ones included, and its place in the data."""

    tokens: int
    where: str


def check_model(job: RLJob) -> ModelShape:
    """The shape of the job's model, once its configuration, its parallel sizes and its weights' headers are right."""
    shape = shape_from_huggingface(hf_config(job))
    hybrid = job.spec.hybrid
    trainer = hybrid.trainer
    sizes = Sizes(tensor=trainer.tensor_parallel, pipeline=trainer.pipeline_parallel)
    check_sizes(shape, sizes, trainer.ranks * hybrid.replicas)
    check_engine_sizes(shape, hybrid.inference.tensor_parallel, "spec.hybrid.inference")
    if job.spec.model.folder is not None:
        folder = Path(job.spec.model.folder)
        check_weights(folder, stored_tensors(folder), shape)
    return shape


def check_engine_sizes(shape: ModelShape, tensor: int, where: str) -> None:
    """SGLang splits heads and the feed-forward layer, and splits or copies key-value heads."""
    for what, value in (("attention heads", shape.heads), ("rows of the feed-forward layer", shape.ffn)):
        if value % tensor:
            raise InputError(f"{tensor} does not divide the model's {value} {what}", where=f"{where}.tensorParallel")
    if shape.kv_heads % tensor and tensor % shape.kv_heads:
        raise InputError(
            f"{tensor} and the model's {shape.kv_heads} key-value heads: one must divide the other",
            where=f"{where}.tensorParallel",
        )


def check_weights(folder: Path, stored: Mapping[str, Stored], shape: ModelShape) -> None:
    """Every tensor of the architecture is there, with its shape and a dtype that can be trained."""
    wanted = full_tensors(shape)
    if missing := [name for name in wanted if name not in stored]:
        raise InputError(
            f"the weights lack {len(missing)} of the {len(wanted)} tensors of {shape.family.value}, {missing[0]} first",
            where=str(folder),
            mend="give the whole folder, or correct config.json",
        )
    for name, full_shape in wanted.items():
        found = stored[name]
        if found.shape != full_shape:
            raise InputError(
                f"{name} is {list(found.shape)}; config.json makes it {list(full_shape)}",
                where=str(folder / found.file),
                mend="config.json and the weights are of different models",
            )
        if found.dtype not in TRAINABLE:
            raise InputError(
                f"{name} is stored as {found.dtype}: quantised weights cannot be trained",
                where=str(folder / found.file),
                mend="give the folder of the model in bfloat16 or float32",
            )


def check_vocabulary(shape: ModelShape, tokens: int) -> None:
    """`tokens`: the tokenizer's largest id and one."""
    if tokens > shape.vocab:
        raise InputError(
            f"has ids up to {tokens - 1}; the embedding has {shape.vocab} rows (config.json: vocab_size)",
            where="tokenizer.json",
            mend="use the model's own tokenizer, or enlarge its embedding (transformers: resize_token_embeddings)",
        )


def check_prompts(job: RLJob, longest: Longest, held: Sequence[Mapping[str, int]]) -> None:
    """Engines and trainer take the longest prompt with the longest answer. `held`: `limits_of` each kind of engine."""
    for one in held:
        check_lengths(job.spec.rollout.max_tokens, longest, one)
    check_micro_batch(job.spec.rollout.max_tokens, longest, job.spec.algorithm.max_micro_batch_tokens)


def check_lengths(max_tokens: int, longest: Longest, limits: Mapping[str, int]) -> None:
    """Prompt and answer fit. `limits`: in words what holds them, and how many tokens that is."""
    for what, size in limits.items():
        room = size - RESERVED
        if longest.tokens + max_tokens <= room:
            continue
        source = f"{longest.where}, " if longest.where else ""
        said = f"{what} of {size} holds {room} (SGLang keeps {RESERVED})"
        if longest.tokens >= room:
            raise InputError(
                f"the longest prompt has {longest.tokens} tokens, and {said}",
                where=longest.where or "spec.dataset",
                mend="leave such prompts out, or use a model and a cache with room for them and an answer",
            )
        raise InputError(
            f"is {max_tokens}; with the longest prompt ({source}{longest.tokens} tokens) that is"
            f" {longest.tokens + max_tokens}, and {said}",
            where="spec.rollout.maxTokens",
            mend=f"at most {room - longest.tokens} fits",
        )


def check_micro_batch(max_tokens: int, longest: Longest, largest: int | None) -> None:
    """Prompt and answer are a sample that the trainer takes. `largest`: algorithm.maxMicroBatchTokens."""
    if largest is None or longest.tokens + max_tokens - 1 <= largest:
        return
    source = f"{longest.where}, " if longest.where else ""
    raise InputError(
        f"is {largest}; the longest prompt ({source}{longest.tokens} tokens) and an answer of rollout.maxTokens"
        f" ({max_tokens}) need {longest.tokens + max_tokens - 1}",
        where="spec.algorithm.maxMicroBatchTokens",
        mend="raise it, or lower rollout.maxTokens",
    )


def limits_of(shape: ModelShape, inference: InferenceSpec, where: str = "spec.hybrid.inference") -> dict[str, int]:
    """For `check_lengths`: the model's context and an engine's cache, where its size is given."""
    limits = {"the model's context": shape.max_positions}
    if inference.kv_tokens:  # else SGLang takes what the accelerator has
        limits[f"{where}.kvTokens"] = inference.kv_tokens
    return limits


def longest_of(prompts: Sequence[Prompt], items: Sequence[Item]) -> Longest:
    """The first of the longest of all prompts; `items`: what they were made of, in the same order."""
    place = max(range(len(prompts)), key=lambda one: len(prompts[one].tokens))
    return Longest(tokens=len(prompts[place].tokens), where=items[place].where)
