"""What a command is about: a run folder on this machine, or `rlj/NAME` on a cluster."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from twinpod.errors import InputError

if TYPE_CHECKING:
    from twinpod.client.cluster import ClusterJob

KINDS = ("rlj", "rljob", "rljobs", "rljob.twinpod.dev", "rljobs.twinpod.dev")
HELP = "run folder (runs/reverse-letters), or rlj/NAME on a cluster"


def add_target(command: argparse.ArgumentParser) -> None:
    """The argument and the flags that go with it, as kubectl has them."""
    command.add_argument("target", metavar="DIR|rlj/NAME", help=HELP)
    command.add_argument("-n", "--namespace", default="", metavar="NS", help="with rlj/NAME: its namespace")
    command.add_argument("--context", default="", metavar="NAME", help="with rlj/NAME: a context of the kubeconfig")


def target_of(arguments: argparse.Namespace) -> Path | ClusterJob:
    """InputError for a kind that has no runs, for cluster flags with a folder, and for a bare name."""
    kind, slash, name = str(arguments.target).partition("/")
    if slash and kind in KINDS and not Path(arguments.target).is_dir():
        if not name or "/" in name:
            raise InputError(f"{arguments.target!r} names no job", mend="write rlj/NAME, as in rlj/reverse-letters")
        from twinpod.client.cluster import ClusterJob  # late: --help must not wait for the resource models
        from twinpod.client.kubectl import Kubectl

        return ClusterJob(name=name, kubectl=Kubectl(context=arguments.context, namespace=arguments.namespace))
    if arguments.namespace or arguments.context:
        raise InputError(
            "--namespace and --context go with a job on a cluster", where=arguments.target, mend="write rlj/NAME"
        )
    folder = Path(arguments.target)
    if folder.parent == Path() and not folder.exists():  # one word: more likely a name than a path
        raise InputError(
            "there is no such folder",
            where=str(folder),
            mend=f"write runs/{folder}, or rlj/{folder} for a job on a cluster",
        )
    return folder
