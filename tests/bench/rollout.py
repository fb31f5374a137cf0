"""How fast our attention makes SGLang on a CPU: tokens a second at batch 64, against `torch_native`, in one run.

Three engines:

- ours: the attention backend `twinpod_cpu` with Twinpod's settings (one thread a process, an idle scheduler sleeps);
- `torch_native` with the same settings: what the backend alone makes of it (`rollout_over_torch_native_same_settings`);
- `torch_native` as SGLang starts it by itself: a thread a core, an idle scheduler that spins
  (`rollout_over_torch_native`, the bar). On two cores its threads wait for each other at every small operation, the
  longer the more else there is to run.

The first two live side by side and are asked in turn, so that noise of the machine meets both alike; the third comes
after them, alone, for its idle scheduler would slow the others.

A decode step of one sequence computes next to nothing: what it takes is SGLang's own Python and the dispatch of
operators, which a step of 64 pays as well (`decode_python_share`).

All are asked for the same answers. Model: 4 layers, 128 wide, Qwen2, random weights. `make bench-rollout` measures this
alone, `make bench` among the rest.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import report
from tests.bench.report import Measure, Progress, Say

from twinpod.inference.sglang_engine import EngineSpec, server_args
from twinpod.rpc.ports import free_port
from twinpod.testing.engine_client import GeneratingEngine, Generation
from twinpod.testing.standby_driver import StandbyDriver

BATCH, PROMPT, ANSWER, ROUNDS = 64, 5, 32, 5
BAR = 2.5
ALONE = "ours, one sequence"
OURS, SAME, PLAIN = "ours", "same settings", "plain"
PLAIN_SETTINGS = {"sleep_on_idle": False, "disable_overlap_schedule": False}


def write_model(folder: Path) -> None:
    """A 4-layer, 128-wide Qwen2 that never stops by itself."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 64,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "eos_token_id": None,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))


def start(standby: StandbyDriver, folder: Path, backend: str, settings: dict[str, bool]) -> GeneratingEngine:
    """An engine with this attention backend and these settings over ours."""
    port = free_port()
    spec = EngineSpec(
        model_path=str(folder),
        port=port,
        api_key="bench",
        kv_tokens=65_536,
        context_length=2048,
        attention_backend=backend,
    )
    standby.ask("start", args=server_args(spec) | settings, log=str(folder / f"{port}.log"))
    return GeneratingEngine(f"http://127.0.0.1:{port}", "bench", timeout_s=600)


async def tokens_per_second(
    engine: GeneratingEngine, draw: random.Random, answer: int = ANSWER, batch: int = BATCH
) -> float:
    """One batch of prompts, each answered with `answer` tokens."""
    prompts = [tuple(draw.randrange(2, 60) for _ in range(PROMPT)) for _ in range(batch)]
    began = time.perf_counter()
    answers = await engine.generate_many([Generation(tokens=p, n=1, max_new_tokens=answer) for p in prompts])
    return sum(len(sample.tokens) for samples in answers for sample in samples) / (time.perf_counter() - began)


async def rounds(engines: dict[str, GeneratingEngine], count: int, say: Say) -> dict[str, list[float]]:
    """Tokens a second of each engine in each of `count` rounds, after one that warms up."""
    draw = random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        await engine.wait_healthy(300)
        await tokens_per_second(engine, draw, 4)  # faults the cache in
    for turn in range(count):
        for name, engine in engines.items():
            found[name].append(await tokens_per_second(engine, draw))
        if OURS in engines:
            found.setdefault(ALONE, []).append(await tokens_per_second(engines[OURS], draw, batch=1))
        speeds = ", ".join(f"{name} {speeds[-1]:.0f}" for name, speeds in found.items())
        say(f"tokens/s: {speeds}", (turn + 1) / count)
    for engine in engines.values():
        await engine.close()
    return found


def measure(count: int, say: Say) -> list[Measure]:
    """Ratios of the medians over `count` rounds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        with StandbyDriver(folder / "standby.log") as standby:
            engines = {
                OURS: start(standby, folder, "twinpod_cpu", {}),
                SAME: start(standby, folder, "torch_native", {}),
            }
            found = asyncio.run(rounds(engines, count, lambda what, share: say(what, 0.05 + 0.45 * share)))
        with StandbyDriver(folder / "plain.log", threads=0) as standby:
            engines = {PLAIN: start(standby, folder, "torch_native", PLAIN_SETTINGS)}
            found |= asyncio.run(rounds(engines, count, lambda what, share: say(what, 0.5 + 0.5 * share)))
    return [
        _ratio("rollout_over_torch_native", found[OURS], found[PLAIN], BAR),
        _ratio("rollout_over_torch_native_same_settings", found[OURS], found[SAME], None),
        _python_share(found[ALONE], found[OURS]),
    ]


def _python_share(alone: list[float], together: list[float]) -> Measure:
    """Seconds of a step of one sequence over those of a step of BATCH."""
    one, many = 1 / statistics.median(alone), BATCH / statistics.median(together)
    note = f"{one * 1e3:.2f} ms a step of one sequence, {many * 1e3:.2f} ms of {BATCH}"
    return Measure(key="decode_python_share", value=one / many, unit="share", note=note)


def _ratio(key: str, ours: list[float], theirs: list[float], bar: float | None) -> Measure:
    one, other = statistics.median(ours), statistics.median(theirs)
    note = f"{one:.0f} tokens/s over {other:.0f}, {len(ours)} times"
    return Measure(key=key, value=one / other, unit="ratio", at_least=bar, note=note)


def main() -> int:
    """`make bench-rollout`: exit code 1 below the bar."""
    report.end_in_order()
    progress = Progress("rollout", {"rollout": 120.0})
    progress.part("rollout")
    return report.finish("rollout", measure(ROUNDS, progress.say))


if __name__ == "__main__":
    sys.exit(main())
