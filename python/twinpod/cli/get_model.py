"""`twinpod get-model DIR|rlj/NAME OUT`: the trained model, wherever the run was."""

from __future__ import annotations

import argparse
from pathlib import Path

from twinpod.cli import export
from twinpod.cli.target import target_of


def execute(arguments: argparse.Namespace) -> int:
    """From a run folder as `export` does, from a cluster over kubectl; the target appears whole or not at all."""
    target = target_of(arguments)
    if isinstance(target, Path):
        return export.execute(argparse.Namespace(folder=target, to=arguments.to))
    target.get_model(arguments.to)
    print(export.how_to_open(arguments.to))
    return 0
