"""Live parameters to a fetchable version, against a warm memcpy of the same bytes on the same number of threads.

The model is 0.86 GB of bfloat16 in 291 Hugging Face tensors: Qwen2-0.5B's layers with an untied vocabulary of 40,000.
Conversion, the write into shared memory and the digests are all inside the measured time; the arena itself is made
once a run and is not.
"""

from __future__ import annotations

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor

from twinpod.arena import Arena
from twinpod.records.model_shape import Family, ModelShape
from twinpod.records.rope import Rope
from twinpod.trainer.convert.plan import plan_parts
from twinpod.trainer.place import Place
from twinpod.trainer.publish import SLOTS, shard_layout, write_parts

ROPE_THETA = 1e6
SHAPE = ModelShape(
    family=Family.QWEN2,
    hidden=896,
    layers=24,
    heads=14,
    kv_heads=2,
    head_dim=64,
    ffn=4864,
    vocab=40_000,
    max_positions=32_768,
    norm_eps=1e-6,
    rope=Rope(theta=ROPE_THETA),
    tied=False,
    init_std=0.02,
)


def hf_config() -> str:
    """The model's config.json."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": SHAPE.vocab,
        "hidden_size": SHAPE.hidden,
        "intermediate_size": SHAPE.ffn,
        "num_hidden_layers": SHAPE.layers,
        "num_attention_heads": SHAPE.heads,
        "num_key_value_heads": SHAPE.kv_heads,
        "max_position_embeddings": SHAPE.max_positions,
        "rms_norm_eps": SHAPE.norm_eps,
        "rope_theta": ROPE_THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "hidden_act": "silu",
        "tie_word_embeddings": SHAPE.tied,
        "use_sliding_window": False,
        "eos_token_id": None,
        "dtype": "bfloat16",
    }
    return json.dumps(config, indent=2)


def megatron_parameters() -> dict[str, Tensor]:
    """Parameters under Megatron's names and in its layout, as one rank would hold them."""
    parts = plan_parts(SHAPE, Place())
    sizes: dict[str, tuple[int, ...]] = {}
    for part in parts:
        rows = part.rows.groups * part.rows.block if part.rows else part.shape[0]
        sizes[part.source] = (rows, *part.shape[1:])
    return {source: torch.randn(size, dtype=torch.float32).to(torch.bfloat16) for source, size in sizes.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishSeconds:
    """Medians."""

    seconds: float
    memcpy: float
    nbytes: int
    tensors: int
    threads: int


def measure(repeats: int = 7, threads: int = 2, folder: Path = Path("/dev/shm")) -> PublishSeconds:
    """Interleaved runs of a publication and of a memcpy."""
    torch.set_num_threads(1)
    parameters, parts = megatron_parameters(), plan_parts(SHAPE, Place())
    layout = shard_layout("bench/rank-0", parts, "BF16")
    arena = Arena.create(folder / f"twinpod-bench-{uuid4().hex}.arena", layout, SLOTS)
    try:
        slots = [torch.from_numpy(arena.slot(slot)) for slot in range(SLOTS)]
        source, target = (
            torch.ones(layout.slot_bytes, dtype=torch.uint8),
            torch.zeros(layout.slot_bytes, dtype=torch.uint8),
        )
        publish, memcpy = [], []
        with ThreadPoolExecutor(threads) as pool:  # threads: the baseline gets as many as we use
            for turn in range(repeats):
                began = time.perf_counter()
                digest = write_parts(parameters, parts, layout, slots[turn % SLOTS], threads)
                publish.append(time.perf_counter() - began)
                began = time.perf_counter()
                list(
                    pool.map(
                        lambda pair: pair[0].copy_(pair[1]),
                        zip(target.chunk(threads), source.chunk(threads), strict=True),
                    )
                )
                memcpy.append(time.perf_counter() - began)
        assert digest == arena.digest((repeats - 1) % SLOTS, threads)
    finally:
        arena.unlink()
    return PublishSeconds(
        seconds=statistics.median(publish),
        memcpy=statistics.median(memcpy),
        nbytes=sum(part.nbytes for part in layout.parts),
        tensors=len(layout.parts),
        threads=threads,
    )
