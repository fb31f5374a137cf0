"""`twinpod fit` against the memory that trainer ranks take: three shapes on a CPU, predicted over measured.

Each shape is one Megatron rank in a process of its own: it trains an iteration of two steps, publishes and
offloads. Measured is the highest resident size above that of the idle process (imports and process group made).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinpod.api.sizing.nouns import Recompute, Setup
from twinpod.api.sizing.phases import holdings

TOP = Path(__file__).resolve().parents[2]
BAR = 0.25  # of the measured, either way


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model and its batches."""

    config: dict[str, Any]
    micro_tokens: int
    length: int  # of every sequence
    samples: int
    dtype: str = "float32"
    recompute: Recompute = "None"


def _config(kind: str, **sizes: Any) -> dict[str, Any]:
    return {
        "architectures": [kind],
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        **sizes,
    }


SHAPES = {
    "wide": Shape(
        config=_config(
            "LlamaForCausalLM", hidden_size=768, num_hidden_layers=6, num_attention_heads=12, num_key_value_heads=12,
            intermediate_size=2048, vocab_size=16_000, tie_word_embeddings=False,
        ),
        micro_tokens=1024, length=256, samples=8, recompute="Selective",
    ),
    "deep": Shape(
        config=_config(
            "Qwen3ForCausalLM", hidden_size=384, num_hidden_layers=20, num_attention_heads=8, num_key_value_heads=2,
            head_dim=64, intermediate_size=1024, vocab_size=8_000, tie_word_embeddings=True,
        ),
        micro_tokens=1024, length=512, samples=4,
    ),
    "vocabulary": Shape(
        config=_config(
            "Qwen2ForCausalLM", hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=1024, vocab_size=151_936, tie_word_embeddings=True,
        ),
        micro_tokens=1024, length=512, samples=4, dtype="bfloat16",
    ),
}  # fmt: skip


def setup_of(shape: Shape) -> Setup:
    """As `twinpod fit` would read it from a job."""
    from twinpod.records.model_shape import shape_from_huggingface

    return Setup(
        shape=shape_from_huggingface(shape.config), item=4 if shape.dtype == "float32" else 2, replicas=1,
        accelerators=0, tensor=1, pipeline=1, data=1, micro_tokens=shape.micro_tokens, context=shape.length,
        samples=shape.samples, recompute=shape.recompute, sequence_parallel=False, offload=True,
        local_layers=True, engine_tensor=1, engine_data=1,
        kv_tokens=1024, memory_fraction=0.8, max_running=8,
    )  # fmt: skip


def predicted(shape: Shape) -> int:
    """Bytes of a rank's process beyond its idle ones, the arena's two slots with it: the worst phase of training."""
    idle = ("trainer's processes", "engine's processes")
    phases = [one for one in holdings(setup_of(shape), None) if one.phase != "rollout"]
    return max(sum(amount.nbytes for amount in one.host if amount.name not in idle) for one in phases)


def measured(name: str) -> int:
    """Bytes at the highest above idle."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.fit", "--rank", name],
        cwd=TOP, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found = json.loads(done.stdout.splitlines()[-1])
    return int(found["peak"] - found["idle"])


def _status(field: str) -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024


def rank(name: str) -> None:
    """The process that is measured."""
    import torch.distributed as dist

    from twinpod.records.model_shape import shape_from_huggingface
    from twinpod.records.training import TrainSettings
    from twinpod.trainer.megatron import Activations, build_rank, lay_out, start_ranks
    from twinpod.trainer.memory import RankMemory
    from twinpod.trainer.place import Sizes
    from twinpod.trainer.publish import Publisher
    from twinpod.trainer.step import train_iteration
    from twinpod.trainer.weights import load_random

    shape = SHAPES[name]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as shm:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(random.randrange(20_000, 30_000))}
        machine = start_ranks(local_rank=0, dtype=shape.dtype)
        place = lay_out(Sizes(), machine)
        idle = _status("VmRSS")
        marks = {}

        def mark(what: str) -> None:
            marks[what] = (_status("VmHWM") - idle) >> 20
            Path("/proc/self/clear_refs").write_text("5")

        mark("start")
        one = build_rank(shape_from_huggingface(shape.config), place, machine, Activations(recompute=shape.recompute))
        weights = dict(one.optimizer.blank())
        load_random(weights, one.shape, place, 0)
        one.optimizer.take(weights)
        del weights
        mark("load")
        settings = TrainSettings(
            learning_rate=1e-5, betas=(0.9, 0.95), weight_decay=0.0, eps=1e-8, tau=0.1, temperature=1.0, mask="all",
            steps=2, clip_grad=1.0, micro_batch_tokens=shape.micro_tokens,
        )  # fmt: skip
        publisher = Publisher(one, Path(shm) / "rank.arena", owner="bench", address="", threads=1)
        mark("arena")
        train_iteration(one, batch(shape), settings)
        mark("train")
        publisher.publish(1)
        publisher.publish(2)
        mark("publish")
        memory = RankMemory(one, enabled=True)
        memory.offload()
        memory.onload()
        mark("offload")
        publisher.close()
        dist.destroy_process_group()
    print(json.dumps({"idle": idle, "peak": idle + (max(marks.values()) << 20), "marks": marks}))


def batch(shape: Shape) -> Any:
    """Random tokens; every sequence as long as the shape says."""
    import numpy as np

    from twinpod.records.arrays import LogProbs, TokenIds
    from twinpod.records.training import GIVEN, RankBatch, Sample, TokenRun

    draw = np.random.default_rng(1)
    answer, rows = shape.length - 16, shape.micro_tokens // shape.length
    samples = tuple(
        Sample(
            trajectory_id=i + 1,
            group=i // 2,
            mini_batch=0,
            micro_batch=i // rows,
            tokens=TokenIds(draw.integers(0, shape.config["vocab_size"], shape.length + 1)),
            logps=LogProbs(np.full(answer, -5.0)),
            runs=(TokenRun(version=GIVEN, count=17), TokenRun(version=1, count=answer)),
            advantage=float(draw.uniform(-1, 1)),
            weight=1 / shape.samples,
            reward=0.5,
        )
        for i in range(shape.samples)
    )
    return RankBatch(iteration=1, version=1, group_size=2, micro_batches=(-(-shape.samples // rows),), samples=samples)


def ratios() -> dict[str, float]:
    """`fit_over_measured_<shape>` for the report of `make bench-scale`."""
    return {f"fit_over_measured_{name}": predicted(shape) / measured(name) for name, shape in SHAPES.items()}


if __name__ == "__main__":
    if "--rank" in sys.argv:
        rank(sys.argv[-1])
    else:
        for key, value in ratios().items():
            print(f"{key:32} {value:6.3f}   bar {1 - BAR:.2f} to {1 + BAR:.2f}")
