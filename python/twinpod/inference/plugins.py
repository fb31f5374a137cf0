"""What Twinpod adds to SGLang's own functions, through SGLang's hook registry only.

SGLang loads the entry-point group `sglang.srt.plugins` in every process it makes and calls `register`. The hooks:

- `fork_again`, in engines that the standby forked (`START_VARIABLE` says fork): SGLang's children are forked too.
- `keep_in_folder`, in every engine of a standby: a file in /dev/shm that a killed engine leaves goes to its temporary
  folder.
- `guard_load`, around a weight load by our loader: an error there becomes the answer to the request, on all tensor-
  parallel ranks alike. Without it the scheduler dies and the reason is only in its log, and the answer of a load that
  failed on any rank but the first would be "success". What a failed load leaves behind is a mixture, so its version
  label becomes `BROKEN_VERSION`.
- `seed_draws`, `draw_by_seed`, where tokens are drawn on a CPU: a request's own `sampling_seed` decides its draws, as
  with SGLang's deterministic inference, which only some attention backends have and which needs sgl_kernel. On
  accelerators the draws stay SGLang's own: its samplers there refuse a seed.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twinpod.inference.names import ATTENTION_BACKEND, BROKEN_VERSION, START_VARIABLE

__all__ = ["register"]

_RUNNER = "sglang.srt.model_executor.model_runner_components.weight_updater"
_SAMPLING = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo"
_SCHEDULER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"


def register() -> None:
    """Register the hooks (SGLang applies them after all plug-ins are loaded)."""
    from sglang.srt.arg_groups.choices import add_attention_backend_choices
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    add_attention_backend_choices([ATTENTION_BACKEND])

    HookRegistry.register("sglang.srt.entrypoints.engine._set_envs_and_config", fork_again, HookType.AFTER)
    HookRegistry.register("sglang.srt.managers.load_snapshot.shm_path_for", keep_in_folder, HookType.AFTER)
    HookRegistry.register(f"{_RUNNER}.WeightUpdater.update_weights_from_tensor", guard_load, HookType.AROUND)
    HookRegistry.register("sglang.srt.layers.sampler.multinomial_with_seed", draw_by_seed, HookType.AROUND)
    HookRegistry.register(f"{_SAMPLING}.from_schedule_batch", seed_draws, HookType.AFTER)
    HookRegistry.register(f"{_SCHEDULER}.update_weights_from_tensor", label_broken, HookType.AFTER)


def fork_again(result: object, *args: object, **kwargs: object) -> None:
    """Undo SGLang's `spawn`: children of a forked engine are forked too, with everything already imported."""
    if os.environ.get(START_VARIABLE) == "fork":
        multiprocessing.set_start_method("fork", force=True)


def keep_in_folder(result: str, *args: object, **kwargs: object) -> str | None:
    """Move SGLang's file of load figures, which has a random name, to the engine's own temporary folder."""
    if START_VARIABLE not in os.environ:
        return None
    return str(Path(tempfile.gettempdir(), Path(result).name))


def seed_draws(result: Any, kind: type, batch: Any, *args: object, **kwargs: object) -> None:
    """After SGLang has put the sampling of a batch together: every request draws by a seed, its own or a random one
    that it keeps."""
    if batch.device != "cpu" or result.sampling_seed is not None:
        return
    import torch

    for request in batch.reqs:
        if request.sampling_params.sampling_seed is None:
            request.sampling_params.sampling_seed = random.getrandbits(31)
    seeds = [request.sampling_params.sampling_seed for request in batch.reqs]
    result.sampling_seed = torch.tensor(seeds, dtype=torch.int64)


def draw_by_seed(original: Callable[..., Any], logprobs_BV: Any, seed_B: Any, positions_B: Any) -> Any:
    """Around SGLang's draw by seed: int64[B, 1]. Seed and position of a row make one uniform number (splitmix64), which
    falls into one token's share of the probability."""
    if logprobs_BV.device.type != "cpu":
        return original(logprobs_BV, seed_B, positions_B)
    import numpy as np
    import torch

    with np.errstate(over="ignore"):
        mixed_B = seed_B.numpy().astype(np.uint64) << np.uint64(32) | positions_B.numpy().astype(np.uint64)
        for multiplier in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
            mixed_B = (mixed_B ^ (mixed_B >> np.uint64(30))) * np.uint64(multiplier)
        mixed_B ^= mixed_B >> np.uint64(31)
    uniform_B = torch.from_numpy((mixed_B >> np.uint64(11)).astype(np.float64) * 2.0**-53)
    upto_BV = logprobs_BV.to(torch.float64).exp().cumsum(1)
    found_B1 = torch.searchsorted(upto_BV, uniform_B[:, None] * upto_BV[:, -1:], right=True)
    return found_B1.clamp_(max=upto_BV.shape[1] - 1)


def guard_load(original: Callable[..., tuple[bool, str]], *args: Any, **kwargs: Any) -> tuple[bool, str]:
    """Around SGLang's load in a rank: (succeeded on every rank, the first failure's message)."""
    from sglang.srt.runtime_context import get_parallel

    try:
        answer = original(*args, **kwargs)
    except Exception as error:  # any failure is the request's answer; the caller decides about the engine
        logging.getLogger(__name__).exception("weight load failed")
        answer = (False, f"{type(error).__name__}: {error}")
    if get_parallel().tp_size == 1:
        return answer
    return _agree(answer)


def _agree(answer: tuple[bool, str]) -> tuple[bool, str]:
    """The same verdict on all ranks: failure if any rank failed."""
    import torch.distributed
    from sglang.srt.distributed import get_tp_group

    group = get_tp_group()
    answers: list[Any] = [None] * group.world_size
    torch.distributed.all_gather_object(answers, answer, group=group.cpu_group)
    failures = [f"rank {rank}: {message}" for rank, (done, message) in enumerate(answers) if not done]
    return (False, failures[0]) if failures else answer


def label_broken(result: Any, updater: Any, *args: Any, **kwargs: Any) -> None:
    """After SGLang's load request: a failed one must not go on under the old version's name."""
    if not result.success:
        updater.record_weight_version_after_update(BROKEN_VERSION)
