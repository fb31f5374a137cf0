"""`twinpod validate FILE`: every problem of a file's resources at once, without starting anything."""

from __future__ import annotations

import argparse

from twinpod.api.load import load_resources


def execute(arguments: argparse.Namespace) -> int:
    """0 with a line for each resource when all of them are right; InputError otherwise."""
    for resource in load_resources(arguments.file):
        print(f"{arguments.file}: {resource.kind} {resource.metadata.name} is valid")
    return 0
