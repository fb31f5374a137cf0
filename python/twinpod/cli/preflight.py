"""What the master would refuse, found before anything is started or written: data set, tokenizer, prompts, reward."""

from __future__ import annotations

import tempfile
from pathlib import Path

from twinpod.api.model_folder import write_model_folder
from twinpod.api.types import RLJob
from twinpod.master.judge_process import JudgeProcess, JudgeSetup
from twinpod.sampling.datasets import open_dataset
from twinpod.sampling.tokens import Tokenizer, build_prompts


def check_inputs(job: RLJob) -> None:
    """Opens what the job names, in the order of the master; raises its InputError. Takes up to some seconds."""
    with tempfile.TemporaryDirectory(prefix="twinpod-") as folder:
        write_model_folder(job, Path(folder))
        tokenizer = Tokenizer(Path(folder))
        data = job.spec.dataset
        dataset = open_dataset(data, job.spec.seed)
        build_prompts(dataset, data.template, tokenizer, special=data.add_special_tokens)
    check_reward(job)


def check_reward(job: RLJob) -> None:
    """Opens the reward as the master does; one that hangs, or ends its process, is an error here."""
    setup = JudgeSetup(reward=job.spec.reward, dataset=job.spec.dataset, seed=job.spec.seed)
    if setup.apart:
        JudgeProcess(setup).close()
