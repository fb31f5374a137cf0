"""A process that judges answers: the reward of a job, code of a user's or of a data set's, where it can be killed.

`JudgeProcess` is the master's side, `open_judge` what runs in the process (`twinpod.child`).
"""

from __future__ import annotations

from dataclasses import dataclass

from twinpod.api.types import DatasetSpec, RewardSpec
from twinpod.child import Child, Opened
from twinpod.records.rollout import Prompt
from twinpod.reward.choose import choose
from twinpod.reward.port import Verdict
from twinpod.sampling.gym import GymVerifier, open_source

__all__ = ["JudgeProcess", "JudgeSetup", "open_judge"]

START_S = 600.0  # a reward may load a model when it is imported


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSetup:
    """What a judge opens."""

    reward: RewardSpec
    dataset: DatasetSpec
    seed: int

    @property
    def apart(self) -> bool:
        """Whether answers are judged in processes: rewards of our own are quick and never hang."""
        return self.reward.kind in ("dataset", "entryPoint")


class JudgeProcess:
    """One judge. Life and errors: as `Child`'s."""

    def __init__(self, setup: JudgeSetup) -> None:
        """InputError when the reward is not there."""
        self._child = Child("twinpod.master.judge_process:open_judge", setup, name="reward", start_s=START_S)

    def score(self, prompt: Prompt, key: int, answer: str, within_s: float) -> Verdict:
        """The verdict on one answer; `key` is the prompt's for the data set's own score."""
        reward, correct, error = self._child.ask((prompt, key, answer), within_s)
        return Verdict(reward=reward, correct=correct, error=error)

    def close(self) -> None:
        """End it."""
        self._child.close()


def open_judge(setup: JudgeSetup) -> Opened:
    """In the process: the handler of `JudgeProcess.score`."""
    keys: dict[int, int] = {}
    gym = setup.reward.kind == "dataset" and setup.dataset.reasoning_gym is not None
    port = choose(setup.reward, GymVerifier(open_source(setup.dataset, setup.seed), keys) if gym else None)

    def judge(request: tuple[Prompt, int, str]) -> tuple[float, bool, str]:
        prompt, key, answer = request
        keys.clear()
        keys[prompt.prompt_id] = key
        verdict = port.score(prompt, answer)
        return verdict.reward, verdict.correct, verdict.error

    return judge, None
