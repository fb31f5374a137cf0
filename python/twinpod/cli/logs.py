"""`twinpod logs DIR|rlj/NAME [POD]`: the ends of the logs of a run's processes, in one place."""

from __future__ import annotations

import argparse
from pathlib import Path

from twinpod.cli.target import target_of
from twinpod.client.cluster import ClusterJob
from twinpod.errors import InputError


def execute(arguments: argparse.Namespace) -> int:
    """Lists the log files, or prints the ends of those that belong to a pod or container."""
    target = target_of(arguments)
    if isinstance(target, ClusterJob):
        return target.logs(arguments.pod, arguments.lines, follow=arguments.follow)
    logs = target / "logs"
    if not logs.is_dir():
        raise InputError("is not a run folder (it has no logs)", where=str(target))
    files = log_files(target)
    if not arguments.pod:
        for name, file in files.items():
            print(f"{name:<48} {file.stat().st_size:>10} bytes  {file}")
        return 0
    chosen = {name: file for name, file in files.items() if name.startswith(arguments.pod)}
    if not chosen:
        raise InputError(f"has no log of {arguments.pod!r}", where=str(logs), mend=f"known are {', '.join(files)}")
    for name, file in chosen.items():
        print(f"==> {name} <==")
        for line in file.read_text(errors="replace").splitlines()[-arguments.lines :]:
            print(line)
    return 0


def log_files(folder: Path) -> dict[str, Path]:
    """Containers' logs by pod.container, then the logs that their children wrote into the pod's own folder."""
    files = {file.stem: file for file in sorted((folder / "logs").glob("*.log"))}
    for file in sorted((folder / "pods").glob("*/*/**/*.log")):
        inner = file.relative_to(folder / "pods")
        if not any(part.endswith(".previous") for part in inner.parts):
            files[f"{inner.parts[0]}.{file.stem}"] = file
    return files
