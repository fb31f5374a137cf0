"""Live parameters to a fetchable version, against a warm memcpy of the same bytes on the same number of threads.

The model is 0.86 GB of bfloat16 in 291 Hugging Face tensors: Qwen2-0.5B's layers with an untied vocabulary of 40,000.
Conversion, the write into shared memory and the digests are all inside the measured time; the arena itself is made
once a run and is not.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor

from twinpod.arena import Arena
from twinpod.trainer.convert.plan import plan_parts
from twinpod.trainer.place import Place
from twinpod.trainer.publish import SLOTS, shard_layout, write_parts
from twinpod.trainer.shape import Family, ModelShape

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
    rope_theta=1e6,
    rope_llama3_factor=None,
    tied=False,
    init_std=0.02,
)
REPEATS = 7


def megatron_parameters() -> dict[str, Tensor]:
    """Parameters under Megatron's names and in its layout, as one rank would hold them."""
    parts = plan_parts(SHAPE, Place())
    sizes: dict[str, tuple[int, ...]] = {}
    for part in parts:
        rows = part.rows.groups * part.rows.block if part.rows else part.shape[0]
        sizes[part.source] = (rows, *part.shape[1:])
    return {source: torch.randn(size, dtype=torch.float32).to(torch.bfloat16) for source, size in sizes.items()}


def measure(threads: int = 2, folder: Path = Path("/dev/shm")) -> dict[str, float]:
    """`publish_over_memcpy` (memcpy's seconds over ours, medians of interleaved runs) and what it was made of."""
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
            for turn in range(REPEATS):
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
        assert digest == arena.digest((REPEATS - 1) % SLOTS, threads)
    finally:
        arena.unlink()
    seconds, copy = statistics.median(publish), statistics.median(memcpy)
    return {
        "publish_over_memcpy": copy / seconds,
        "publish_s": seconds,
        "memcpy_s": copy,
        "publish_bytes": float(sum(part.nbytes for part in layout.parts)),
        "publish_tensors": float(len(layout.parts)),
        "publish_threads": float(threads),
    }


if __name__ == "__main__":
    print(measure())
