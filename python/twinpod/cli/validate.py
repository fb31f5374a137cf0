"""`twinpod validate FILE`: every problem of a manifest at once, without starting anything."""

from __future__ import annotations

import argparse

from twinpod.api.load import load_resource


def execute(arguments: argparse.Namespace) -> int:
    """0 with one line when the manifest is right; InputError otherwise."""
    resource = load_resource(arguments.file)
    print(f"{arguments.file}: {resource.kind} {resource.metadata.name} is valid")
    return 0
