"""A reward written by the user: a function `pkg.mod:func(prompt: Prompt, answer_text: str) -> float | Verdict`."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable

from twinpod.errors import InputError
from twinpod.records.rollout import Prompt
from twinpod.reward.port import Verdict, masked, verdict_of

__all__ = ["EntryPointReward", "load_function"]

log = logging.getLogger(__name__)

Function = Callable[[Prompt, str], "float | Verdict"]
WHERE = "reward.target"


def load_function(target: str) -> Function:
    """The function that `pkg.mod:func` names; InputError when there is none."""
    module_name, _, name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        mend = "is its package in the master's image, or beside the manifest of a local run, and spelt so?"
        raise InputError(f"{target!r}: {error}", where=WHERE, mend=mend) from error
    except Exception as error:  # the module's own code: whatever it raises is about the input
        raise InputError(f"{module_name} cannot be imported: {type(error).__name__}: {error}", where=WHERE) from error
    function: Function | None = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{module_name} has no function {name!r}", where=WHERE, mend=f"define it in {module_name}")
    return function


class EntryPointReward:
    """The reward `kind: entryPoint`. A function that raises, or answers no finite number, masks the sample."""

    def __init__(self, target: str) -> None:
        self._target, self._function = target, load_function(target)

    def score(self, prompt: Prompt, answer_text: str) -> Verdict:
        """See RewardPort. A plain number counts as right from 1 on."""
        try:
            return verdict_of(self._function(prompt, answer_text), self._target)
        except Exception as error:  # noqa: BLE001  # foreign code; its fault is no verdict on the answer
            log.warning("prompt %d could not be scored: %s: %s", prompt.prompt_id, type(error).__name__, error)
            return masked(f"{self._target}: {type(error).__name__}: {error}")
