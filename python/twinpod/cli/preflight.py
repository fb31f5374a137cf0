"""What the master would refuse, found before anything is started or written: model folder, data set, tokenizer,
prompts, lengths, reward.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path

from twinpod.api.model_folder import write_model_folder
from twinpod.api.types import RLJob, RolloutPool
from twinpod.master import limits
from twinpod.master.judge_process import JudgeProcess, JudgeSetup
from twinpod.sampling.datasets import open_dataset
from twinpod.sampling.tokens import Tokenizer, build_prompts

MODEL = ("the model folder", "the snapshot", "the tokenizer")  # how phrases of `not_here` begin that are of the model


def check_inputs(job: RLJob, pools: Sequence[RolloutPool] = ()) -> None:
    """Opens what the job names, in the order of the master; raises its InputError. Takes up to some seconds."""
    shape = limits.check_model(job)
    held = [limits.limits_of(shape, job.spec.hybrid.inference)]
    for pool in pools:
        where = f"RolloutPool {pool.metadata.name} spec.inference"
        limits.check_engine_sizes(shape, pool.spec.inference.tensor_parallel, where)
        held.append(limits.limits_of(shape, pool.spec.inference, where))
    with tempfile.TemporaryDirectory(prefix="twinpod-") as folder:
        write_model_folder(job, Path(folder))
        tokenizer = Tokenizer(Path(folder))
        limits.check_vocabulary(shape, tokenizer.size)
        data = job.spec.dataset
        dataset = open_dataset(data, job.spec.seed)
        prompts = build_prompts(dataset, data.template, tokenizer, special=data.add_special_tokens)
        longest = limits.longest_of(prompts, dataset.items)
        limits.check_prompts(job, longest, held)
    check_reward(job)


def check_reward(job: RLJob) -> None:
    """Opens the reward as the master does; one that hangs, or ends its process, is an error here."""
    setup = JudgeSetup(reward=job.spec.reward, dataset=job.spec.dataset, seed=job.spec.seed)
    if setup.apart:
        JudgeProcess(setup).close()


def module_folders(file: Path) -> list[str]:
    """Where data sets and rewards of the user's are looked for last: beside the manifest, and here."""
    return [str(file.resolve().parent), str(Path.cwd())]


def not_here(job: RLJob) -> list[str]:
    """What the job names that this machine does not have, one phrase each: paths and modules are the containers'."""
    spec = job.spec
    model, data = spec.model, spec.dataset
    found = []
    if model.folder is not None and not Path(model.folder).is_dir():
        found.append(f"the model folder {model.folder}")
    elif model.folder is None and model.from_snapshot is not None:
        found.append(f"the snapshot {model.from_snapshot.folder} of {model.from_snapshot.claim}")
    if model.tokenizer is not None and model.tokenizer.path and not Path(model.tokenizer.path).is_dir():
        found.append(f"the tokenizer {model.tokenizer.path}")
    if data.json_lines is not None and not Path(data.json_lines.path).exists():
        found.append(f"the data file {data.json_lines.path}")
    targets = [data.entry_point.target if data.entry_point else None, spec.reward.target]
    modules = [target.partition(":")[0] for target in targets if target]
    modules += ["reasoning_gym"] if data.reasoning_gym else []
    found += [f"the module {module}" for module in dict.fromkeys(modules) if not _importable(module)]
    return found


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        return False
