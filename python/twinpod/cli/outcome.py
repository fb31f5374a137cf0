"""The end of a run: its summary, the reward curve, and the proof that transformers opens what was trained."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from twinpod.api.types import RLJob
from twinpod.cli.words import duration, number
from twinpod.errors import EnvironmentFault
from twinpod.local.folder import RunFolder, write_whole
from twinpod.master.inspect import inspect
from twinpod.records.run import IterationRecord
from twinpod.telemetry.curve import draw

LAST = 5  # iterations in the summary's reward
CHECK_TIMEOUT_S = 600.0


def write_outcome(job: RLJob, folder: RunFolder, console: Console, *, check_export: bool) -> int:
    """Writes summary.json and reward.png, prints what a person wants to know; returns the command's exit code."""
    report = inspect(folder.root)
    records = report.iterations
    exact, fault = math.nan, ""
    if check_export:
        try:
            exact = greedy_match(folder.job_file, folder.export, folder.books)
        except EnvironmentFault as error:
            fault = str(error)
    summary = summarise(job, records, exact, folder.seconds())
    write_whole(folder.summary, json.dumps(summary, indent=2) + "\n")
    draw(records, folder.curve, job.metadata.name)
    console.print(
        f"\n{job.metadata.name} is done: {summary['iterations']} iterations in {duration(summary['seconds'])}",
        markup=False,
    )
    console.print(f"  reward       {number(_nan(summary['reward']), 3)} (mean of the last {LAST} iterations)")
    if job.spec.dataset.held_out:
        console.print(
            f"  exact match  {number(exact, 3)} (greedy, {job.spec.dataset.held_out} held-out prompts, transformers)"
        )
    phases = ", ".join(f"{name} {value:.1f}" for name, value in summary["phaseSeconds"].items())
    console.print(f"  seconds      {phases}", soft_wrap=True)
    for name, path in (
        ("model", folder.export),
        ("curve", folder.curve),
        ("tensorboard", folder.tensorboard),
        ("summary", folder.summary),
    ):
        if path.exists():
            console.print(f"  {name:<12} {os.path.relpath(path)}", markup=False, soft_wrap=True)
    console.print(f"  read it      twinpod inspect {os.path.relpath(folder.root)}", markup=False, soft_wrap=True)
    if fault:
        console.print(f"twinpod: the exported model could not be checked: {fault}", markup=False, soft_wrap=True)
        return 1
    return 0


def summarise(job: RLJob, records: tuple[IterationRecord, ...], exact: float, wall_s: float) -> dict[str, Any]:
    """What stands in summary.json; keys are stable, unknown numbers are null. `wall_s`: starts and ends included."""
    rewards = [record.reward for record in records if not math.isnan(record.reward)][-LAST:]
    reward = sum(rewards) / len(rewards) if rewards else math.nan
    phases: dict[str, float] = {}
    for record in records:
        for name, spent in asdict(record.seconds).items():
            phases[name] = phases.get(name, 0.0) + spent
    return {
        "iterations": len(records),
        "reward": None if math.isnan(reward) else reward,
        "exactMatch": None if math.isnan(exact) else exact,
        "seconds": wall_s,
        "phaseSeconds": phases,
        "seed": job.spec.seed,
    }


def greedy_match(job_file: Path, export: Path, books: Path | None) -> float:
    """Share of held-out prompts that the exported model answers rightly, found by a process of its own (it imports
    torch). `books` None: they are not at hand.
    """
    arguments = (str(job_file), str(export), str(books or "-"))
    command = [sys.executable, "-m", "twinpod.cli.greedy", *arguments, *sys.path]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFault(f"no answer in {CHECK_TIMEOUT_S:.0f} s", where="greedy check") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
        raise EnvironmentFault(lines[-1], where="greedy check")
    return float(json.loads(done.stdout.splitlines()[-1])["exactMatch"])


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
