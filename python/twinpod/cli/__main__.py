"""`twinpod COMMAND`: the parser, and what a person sees of an error: one clear line, exit code 2 (input) or 1
(everything else).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twinpod import __version__
from twinpod.cli.target import add_target
from twinpod.errors import TwinpodError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        module = importlib.import_module(arguments.module)
        return int(module.execute(arguments))
    except TwinpodError as error:
        if arguments.verbose:
            raise
        print(f"twinpod: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `twinpod logs | head`
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="twinpod",
        description="Reinforcement learning of language models: Megatron trains and SGLang generates on the same "
        "accelerators, in turn.",
        epilog="First steps: make demo. What a run left behind: twinpod inspect runs/<job>.",
    )
    top.add_argument("--version", action="version", version=f"twinpod {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Command)
    _add_run(commands)
    validate = _command(commands, "validate", "check a manifest, without starting anything")
    validate.add_argument("file", type=Path, metavar="FILE", help="RLJobs, RolloutPools and SandboxPools")
    _add_fit(commands)
    inspect = _command(commands, "inspect", "what a running or finished run did, from its database alone")
    add_target(inspect)
    inspect.add_argument("--json", action="store_true", help="everything, as one JSON object")
    status = _command(commands, "status", "where a run stands now, in a few lines")
    add_target(status)
    logs = _command(commands, "logs", "logs of a run's processes")
    add_target(logs)
    logs.add_argument(
        "pod", nargs="?", default="", metavar="POD", help="pod, or pod.container; all files are listed without it"
    )
    logs.add_argument("--lines", type=int, default=50, metavar="N", help="last lines of each file (default 50)")
    logs.add_argument("-f", "--follow", action="store_true", help="with rlj/NAME: go on printing what comes")
    model = _command(commands, "get-model", "fetch the trained model of a run or job, for transformers")
    add_target(model)
    model.add_argument("to", type=Path, metavar="OUT", help="folder to make; must not exist")
    export = _command(commands, "export", "copy the trained model of a run, as a folder that transformers opens")
    export.add_argument("folder", type=Path, metavar="DIR", help="run folder")
    export.add_argument("to", type=Path, metavar="OUT", help="folder to make; must not exist")
    scale = _command(commands, "scale", "change the number of pods of a RolloutPool in a running local run")
    scale.add_argument("folder", type=Path, metavar="DIR", help="run folder")
    scale.add_argument("pool", metavar="NAME", help="name of the RolloutPool")
    scale.add_argument("replicas", type=int, metavar="N", help="how many pods it is to have; 0 ends them all")
    doctor = _command(commands, "doctor", "what this machine lacks for local mode, and the command that mends it")
    doctor.add_argument("--json", action="store_true", help="as one JSON object")
    return top


class _Command(argparse.ArgumentParser):
    """Options may stand anywhere, as with kubectl: `logs rlj/x -n team x-master`."""

    _within = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See argparse, whose own way takes a positional that may be missing as missing once an option comes."""
        if self._within:
            return super().parse_known_args(args, namespace)
        self._within = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._within = False


def _add_run(commands: argparse._SubParsersAction[_Command]) -> None:
    run = _command(commands, "run", "run an RLJob on this machine; the same command goes on where a run stopped")
    run.add_argument("file", type=Path, metavar="FILE", help="manifest of an RLJob, and of its RolloutPools")
    run.add_argument("--local", action="store_true", required=True, help="on this machine, without Kubernetes")
    run.add_argument("--out", type=Path, metavar="DIR", help="run folder (default runs/<job>)")
    run.add_argument("--seed", type=int, metavar="N", help="instead of spec.seed")
    run.add_argument("--iterations", type=int, metavar="N", help="instead of spec.iterations")
    run.add_argument("--no-live", action="store_true", help="one line an iteration instead of the live table")
    run.add_argument("--no-check", action="store_true", help="do not check the exported model in the end")


def _add_fit(commands: argparse._SubParsersAction[_Command]) -> None:
    fit = _command(commands, "fit", "what a job holds in memory in each phase, whether it fits, and what to change")
    fit.add_argument("file", type=Path, metavar="FILE", help="manifest of an RLJob")
    fit.add_argument("--accelerator", metavar="NAME", help="such as h100-80gb (the default), a100-80gb, h200-141gb")
    fit.add_argument(
        "--prompt-tokens", type=int, default=1024, metavar="N", help="of the longest prompt (default 1024)"
    )
    fit.add_argument("--memory", metavar="QUANTITY", help="what a pod may have of its node's memory, such as 1500Gi")
    fit.add_argument("--config", type=Path, metavar="FILE", help="config.json, where model.from is not on this machine")
    fit.add_argument("--json", action="store_true", help="everything, as JSON")


def _command(commands: argparse._SubParsersAction[_Command], name: str, help_text: str) -> _Command:
    command = commands.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
    command.add_argument("-v", "--verbose", action="store_true", help="show where in the code an error comes from")
    command.set_defaults(module=f"twinpod.cli.{name.replace('-', '_')}")
    return command


if __name__ == "__main__":
    sys.exit(main())
