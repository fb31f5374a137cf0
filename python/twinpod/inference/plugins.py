"""What Twinpod adds to SGLang's own functions, through SGLang's hook registry only.

SGLang loads the entry-point group `sglang.srt.plugins` in every process it makes and calls `register`. The hooks:

- `fork_again`, in engines that the standby forked (`START_VARIABLE` says fork): SGLang's children are forked too.
- `keep_in_folder`, in every engine of a standby: a file in /dev/shm that a killed engine leaves goes to its temporary
  folder.
- `guard_load`, around a weight load by our loader: an error there becomes the answer to the request, on all tensor-
  parallel ranks alike. Without it the scheduler dies and the reason is only in its log, and the answer of a load that
  failed on any rank but the first would be "success". What a failed load leaves behind is a mixture, so its version
  label becomes `BROKEN_VERSION`.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twinpod.inference.names import ATTENTION_BACKEND, BROKEN_VERSION, START_VARIABLE

__all__ = ["register"]

_RUNNER = "sglang.srt.model_executor.model_runner_components.weight_updater"
_SCHEDULER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"


def register() -> None:
    """Register the hooks (SGLang applies them after all plug-ins are loaded)."""
    from sglang.srt.arg_groups.choices import add_attention_backend_choices
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    add_attention_backend_choices([ATTENTION_BACKEND])

    HookRegistry.register("sglang.srt.entrypoints.engine._set_envs_and_config", fork_again, HookType.AFTER)
    HookRegistry.register("sglang.srt.managers.load_snapshot.shm_path_for", keep_in_folder, HookType.AFTER)
    HookRegistry.register(f"{_RUNNER}.WeightUpdater.update_weights_from_tensor", guard_load, HookType.AROUND)
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
