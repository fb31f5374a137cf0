"""`twinpod validate FILE`: every problem of a file's resources at once, without starting anything."""

from __future__ import annotations

import argparse
import sys

from twinpod.api.advice import advice
from twinpod.api.load import load_resources


def execute(arguments: argparse.Namespace) -> int:
    """0 with a line for each resource when all of them are right, warnings on stderr; InputError otherwise."""
    for resource in load_resources(arguments.file):
        print(f"{arguments.file}: {resource.kind} {resource.metadata.name} is valid")
        for line in advice(resource):
            print(f"{arguments.file}: warning: {resource.metadata.name}: {line}", file=sys.stderr)
    return 0
