"""`twinpod fit FILE`: what a job holds in each phase, whether it fits, and what to change. Starts nothing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from twinpod.api.load import load_resources
from twinpod.api.model_folder import hf_config
from twinpod.api.quantity import QuantityError, to_bytes
from twinpod.api.sizing.accelerators import DEFAULT, accelerator
from twinpod.api.sizing.advice import fit
from twinpod.api.sizing.nouns import GIB, Accelerator, Amount, Fit, Setup
from twinpod.api.sizing.read import setup_of
from twinpod.api.types import RLJob
from twinpod.errors import InputError
from twinpod.records.codec import plain
from twinpod.records.model_shape import shape_from_huggingface

NAME_WIDTH, COLUMN = 22, 19


def execute(arguments: argparse.Namespace) -> int:
    """0 when every job of the file fits, 1 when one does not; InputError for what cannot be read."""
    jobs = [one for one in load_resources(arguments.file) if isinstance(one, RLJob)]
    if not jobs:
        raise InputError("has no RLJob", where=str(arguments.file), mend="give the manifest of a job")
    answers = [(job, *_answer(job, arguments)) for job in jobs]
    if arguments.json:
        print(json.dumps([_plain(job, setup, found) for job, setup, found in answers], indent=2))
    else:
        for job, setup, found in answers:
            print("\n".join(lines(job, setup, found)))
    return 0 if all(found.fits for _, _, found in answers) else 1


def _answer(job: RLJob, arguments: argparse.Namespace) -> tuple[Setup, Fit]:
    setup = setup_of(job, shape_from_huggingface(_config(job, arguments.config)), prompt_tokens=arguments.prompt_tokens)
    device: Accelerator | None = None
    if setup.accelerators:
        device = accelerator(arguments.accelerator or DEFAULT)
    elif arguments.accelerator:  # a question: what if it had some?
        device = accelerator(arguments.accelerator)
        setup = replace(setup, accelerators=max(setup.ranks, setup.engine_ranks), offload=True, local_layers=False)
    try:
        memory = to_bytes(arguments.memory) if arguments.memory else 0
    except QuantityError as error:
        raise InputError(str(error), where="--memory") from error
    given = to_bytes(job.spec.hybrid.shared_memory or "0")
    return setup, fit(setup, device, shared_memory_given=given, host_bytes=memory)


def _config(job: RLJob, file: Path | None) -> dict[str, Any]:
    """The model's config.json: the given one, or what the job names."""
    if file is None:
        try:
            return hf_config(job)
        except InputError as error:
            raise InputError(
                error.what, where=error.where, mend="give the model's config.json with --config FILE"
            ) from error
    path = file / "config.json" if file.is_dir() else file
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path), mend="give a model's config.json") from error
    if not isinstance(content, dict):
        raise InputError("is not a JSON object", where=str(path), mend="give a model's config.json")
    return content


def _plain(job: RLJob, setup: Setup, found: Fit) -> dict[str, object]:
    return {"job": job.metadata.name, "setup": plain(setup), **plain(found)}


def lines(job: RLJob, setup: Setup, found: Fit) -> Iterator[str]:
    """The answer for a person; pure."""
    device = found.accelerator
    where = f"{setup.accelerators} x {device.name} ({device.usable / GIB:.1f} GiB)" if device else "CPU"
    pods = f"{setup.replicas} pod{'s' if setup.replicas > 1 else ''}"
    yield f"{job.metadata.name}: {found.parameters / 1e9:.2f} billion parameters, {pods} of {where}"
    yield (
        f"trainer: tensor {setup.tensor} x pipeline {setup.pipeline} x data {setup.data}, recompute {setup.recompute},"
        f" micro-batches of {setup.longest_micro_batch:,} tokens; engine: tensor"
        f" {setup.engine_tensor} x data {setup.engine_data}"
    )
    yield f"sequences of up to {setup.context:,} tokens (answers, and prompts by --prompt-tokens)"
    phases = found.holdings
    for title, columns in (
        ("one accelerator", [(one.phase, one.gpu) for one in phases]),
        ("memory of a pod", [(one.phase, one.host) for one in phases]),
    ):
        if any(amounts for _, amounts in columns):
            yield ""
            yield from _table(f"GiB, {title}", columns)
    yield ""
    yield f"/dev/shm of a pod         {found.shared_memory / GIB:,.1f} GiB"
    if device:
        yield f"largest micro-batch       {found.largest_micro_batch:,} tokens"
    yield (
        f"key-value cache           {found.kv_tokens:,} tokens of {found.kv_token_bytes:,} bytes a rank:"
        f" {found.sequences:,} sequences of full length at once in a pod"
    )
    yield f"fits                      {'yes' if found.fits else 'no'}"
    for problem in found.problems:
        yield f"  {problem}"
    if found.changes:
        yield "change"
        for number, change in enumerate(found.changes, 1):
            yield f"  {number}. {change.field}: {change.value}   ({change.why})"


def _table(title: str, columns: list[tuple[str, tuple[Amount, ...]]]) -> Iterator[str]:
    names = list(dict.fromkeys(amount.name for _, amounts in columns for amount in amounts))
    yield f"{title:<{NAME_WIDTH}}" + "".join(f"{phase:>{COLUMN}}" for phase, _ in columns)
    for name in names:
        sizes = [sum(one.nbytes for one in amounts if one.name == name) for _, amounts in columns]
        yield f"{name:<{NAME_WIDTH}}" + "".join(f"{_size(size):>{COLUMN}}" for size in sizes)
    sums = [sum(one.nbytes for one in amounts) for _, amounts in columns]
    yield f"{'together':<{NAME_WIDTH}}" + "".join(f"{_size(size):>{COLUMN}}" for size in sums)


def _size(nbytes: int) -> str:
    return f"{nbytes / GIB:,.2f}" if nbytes else "-"
