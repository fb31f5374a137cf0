"""Peak memory of the log-probs of 2,048 tokens over a vocabulary of 152k: in chunks, over the whole way.

Each way runs in a process of its own, forward and backward, with the gradients of hidden states and of the output
layer. Counted is the peak of the resident set above the process that holds its inputs. The whole way is the trainer's
until chunks came: Megatron's output layer, its logits in float32 over the temperature, padding masked, and Megatron's
vocabulary-parallel cross entropy.

    python -m tests.bench.logps
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.report import TOP, Measure

TOKENS, VOCAB, PADDED, HIDDEN = 2_048, 152_000, 152_064, 1_024  # sizes of Qwen3-0.6B
TEMPERATURE = 0.8
BAR = 0.25


def measure() -> Measure:
    """`logp_peak_chunked_over_whole`, from two fresh processes."""
    chunked, whole = (peak_bytes(way) for way in ("chunked", "whole"))
    return Measure(
        key="logp_peak_chunked_over_whole",
        value=chunked["peak"] / whole["peak"],
        unit="",
        at_most=BAR,
        note=f"{chunked['peak'] / 2**20:.0f} of {whole['peak'] / 2**20:.0f} MiB, "
        f"{chunked['seconds']:.1f} of {whole['seconds']:.1f} s, one thread",
    )


def peak_bytes(way: str) -> dict[str, float]:
    """`{"peak": bytes above idle, "seconds": ..., "loss": ...}` of one way."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.bench.logps", way],
        cwd=TOP,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(way: str) -> None:
    """One way, in this process."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=0, world_size=1)
        parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
        generator = torch.Generator().manual_seed(1)
        hidden_LBH = torch.randn(TOKENS, 1, HIDDEN, generator=generator).requires_grad_()
        weight_WH = (torch.randn(PADDED, HIDDEN, generator=generator) * 0.02).requires_grad_()
        targets_BL = torch.randint(VOCAB, (1, TOKENS), generator=generator)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        idle, began = _kib("VmRSS"), time.perf_counter()
        loss = {"chunked": _chunked, "whole": _whole}[way](hidden_LBH, weight_WH, targets_BL)
        loss.backward()
        print(
            json.dumps(
                {
                    "peak": (_kib("VmHWM") - idle) * 1024,
                    "seconds": time.perf_counter() - began,
                    "loss": float(loss.detach()),
                }
            )
        )
        dist.destroy_process_group()


def _chunked(hidden_LBH: Any, weight_WH: Any, targets_BL: Any) -> Any:
    from twinpod.trainer.logps import OutputLayer, token_logps

    layer = OutputLayer(weight_WH=weight_WH, first=0, rows=VOCAB, group=None)
    wanted_BL = targets_BL >= 0
    found = token_logps(hidden_LBH, layer, targets_BL, wanted_BL, temperature=TEMPERATURE, entropy=True)
    return found.logps_BL.mean()


def _whole(hidden_LBH: Any, weight_WH: Any, targets_BL: Any) -> Any:
    import torch
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    logits_BLV = (hidden_LBH @ weight_WH.t()).transpose(0, 1).contiguous()
    padding_V = torch.arange(PADDED) >= VOCAB
    prepared_BLV = (logits_BLV.float() / TEMPERATURE).masked_fill(padding_V, -math.inf)
    return -vocab_parallel_cross_entropy(prepared_BLV, targets_BL).mean()


def _kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        print(measure())
