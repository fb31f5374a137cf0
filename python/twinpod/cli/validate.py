"""`twinpod validate FILE`: every problem of a file's resources at once, and what their model folder and data cannot
take, without starting anything.
"""

from __future__ import annotations

import argparse
import sys

from twinpod.api.advice import advice
from twinpod.api.load import load_resources
from twinpod.api.types import RLJob, RolloutPool
from twinpod.cli.preflight import MODEL, check_inputs, module_folders, not_here
from twinpod.master.limits import check_model


def execute(arguments: argparse.Namespace) -> int:
    """0 with a line for each resource when all of them are right, warnings on stderr; InputError otherwise.

    What a job names and this machine does not have is named: the paths of a job are those of its containers.
    """
    sys.path.extend(folder for folder in module_folders(arguments.file) if folder not in sys.path)
    resources = load_resources(arguments.file)
    for resource in resources:
        where = f"{arguments.file}: {resource.kind} {resource.metadata.name}"
        lacking: list[str] = []
        if isinstance(resource, RLJob):
            lacking = not_here(resource)
            pools = [one for one in resources if isinstance(one, RolloutPool) and _serves(one, resource)]
            if not lacking:
                check_inputs(resource, pools)
            elif not any(phrase.startswith(MODEL) for phrase in lacking):
                check_model(resource)
        print(f"{where} is valid")
        for line in advice(resource):
            print(f"{arguments.file}: warning: {resource.metadata.name}: {line}", file=sys.stderr)
        if lacking:
            print(f"{where}: not looked at, because this machine does not have {', '.join(lacking)}; the master does")
    return 0


def _serves(pool: RolloutPool, job: RLJob) -> bool:
    return (pool.spec.job, pool.metadata.namespace) == (job.metadata.name, job.metadata.namespace)
