"""`twinpod run FILE --local`: one job from its start, or from where it stopped, to its end and its summary."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

from rich.console import Console

from twinpod.api.load import check
from twinpod.api.types import RLJob, RolloutPool
from twinpod.cli.live import make_view
from twinpod.cli.outcome import write_outcome
from twinpod.cli.preflight import check_inputs, module_folders
from twinpod.cli.progress import read_progress
from twinpod.errors import EXIT_FAULT, EXIT_INPUT, InputError
from twinpod.local import Launcher
from twinpod.local.folder import RunFolder, refuse_difference
from twinpod.local.inputs import load_run
from twinpod.local.isolation import isolate
from twinpod.local.sources import as_seen_from_outside, source_claims
from twinpod.records.verdict import Verdict


def execute(arguments: argparse.Namespace) -> int:
    """Exit code 0 when the job succeeded, 2 when its input was wrong, 1 when it failed otherwise, 130 and above when a
    signal stopped it.
    """
    modules = module_folders(arguments.file)
    sys.path.extend(folder for folder in modules if folder not in sys.path)
    asked, pools = load_run(arguments.file)
    job = overridden(asked, seed=arguments.seed, iterations=arguments.iterations)
    folder = RunFolder(arguments.out or Path("runs") / job.metadata.name)
    if not folder.begun():
        check_inputs(as_seen_from_outside(job, source_claims(job, folder)), pools)
    folder.lock()
    if finished(job, folder):
        there = f"finished already in {shown(folder.root)}"
        print(f"{job.metadata.name}: {there}; for a fresh run name another folder with --out")
        return write_outcome(job, folder, Console(highlight=False), check_export=not arguments.no_check)
    isolate()  # from here on in the launcher
    sys.exit(_launch(job, pools, folder, arguments))


def overridden(job: RLJob, *, seed: int | None, iterations: int | None) -> RLJob:
    """The job with what the command line says instead; checked again as a whole."""
    if seed is None and iterations is None:
        return job
    document = job.as_manifest()
    document["spec"] |= {key: value for key, value in (("seed", seed), ("iterations", iterations)) if value is not None}
    changed = check(document)
    if not isinstance(changed, RLJob):
        raise InputError("is not an RLJob", where=job.metadata.name)
    return changed


def finished(job: RLJob, folder: RunFolder) -> bool:
    """Whether this very job has run to its end in the folder."""
    if not folder.job_file.exists() or not folder.begun():
        return False
    refuse_difference(json.loads(folder.job_file.read_text()), job.as_manifest(), str(folder.root))
    seen = read_progress(folder.books)
    progress = seen.progress if seen else None
    return progress is not None and progress.state == "Succeeded" and progress.iterations == job.spec.iterations


def _launch(job: RLJob, pools: tuple[RolloutPool, ...], folder: RunFolder, arguments: argparse.Namespace) -> int:
    folder.prepare()
    changed = folder.adopt(job)
    console = Console(highlight=False)
    console.print(
        f"{job.metadata.name}: {'running in' if changed is None else 'going on in'} {shown(folder.root)}", markup=False
    )
    for one in changed or ():
        if one.path.startswith("spec."):
            told = f"{one.path.removeprefix('spec.')} was {one.old}, is {one.new} from the next iteration on"
            console.print(f"  changed: {told}", markup=False, soft_wrap=True)
    view = make_view(job.metadata.name, folder.books, console, live=not arguments.no_live)
    begun = time.monotonic()
    try:
        ended = asyncio.run(Launcher(job, folder, view, pools=pools, modules=module_folders(arguments.file)).run())
    finally:
        view.close()
        folder.add_seconds(time.monotonic() - begun)
    if ended.signal:
        again = " ".join(["twinpod run", str(arguments.file), "--local", *resume_options(arguments)])
        console.print(f"{ended.decision.reason}; to go on: {again}", markup=False, soft_wrap=True)
        return 128 + ended.signal
    if ended.decision.verdict is not Verdict.SUCCEEDED:
        console.print(f"twinpod: {job.metadata.name} failed: {ended.decision.reason}", markup=False, soft_wrap=True)
        return EXIT_INPUT if ended.decision.wrong_input else EXIT_FAULT
    return write_outcome(job, folder, console, check_export=not arguments.no_check)


def resume_options(arguments: argparse.Namespace) -> list[str]:
    """The options that make the same run again."""
    given = (("--out", arguments.out), ("--seed", arguments.seed), ("--iterations", arguments.iterations))
    return [word for name, value in given if value is not None for word in (name, str(value))]


def shown(path: Path) -> Path:
    """A path as short as it can be told from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
