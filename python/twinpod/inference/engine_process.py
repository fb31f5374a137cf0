"""One engine as a process of its own: what a forked child runs, and the program that a spawned one is.

    python -m twinpod.inference.engine_process PARENT FOLDER

FOLDER has `start.json`: {"args": {server arguments}, "env": {variables}}; arguments hold the engine's key, which a
command line would show to everybody.

SGLang imports this module again in every process that a spawned engine makes (`multiprocessing` does), so nothing heavy
is imported before it is needed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinpod.inference import engine_folder, forking
from twinpod.inference.names import START_VARIABLE

__all__ = ["run_engine", "spawn"]

_NOTE = "start.json"
_NO_AUTOPSY = {"SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0", "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0"}
"""An engine that lost a process is replaced; SGLang would keep it for 65 s of crash diagnostics first."""

_BIND_INSIDE = {"SGLANG_NUMA_BIND_V2": "0"}
"""SGLang binds a rank to its device's memory node by another executable, which only a spawned process can have; with
this it binds in the rank itself (scheduler.py, `configure_scheduler_process`), whichever way that was started."""


def run_engine(arguments: dict[str, Any], env: Mapping[str, str], folder: Path, *, start: str) -> None:
    """Be SGLang's server, in this process, until killed. `arguments`: fields of SGLang's ServerArgs."""
    os.environ.update({**_NO_AUTOPSY, **_BIND_INSIDE, **env, START_VARIABLE: start})
    engine_folder.adopt(folder)
    from sglang.launch_server import run_server
    from sglang.srt.server_args import ServerArgs

    run_server(ServerArgs(**arguments))


def spawn(arguments: dict[str, Any], env: Mapping[str, str], folder: Path, *, log: str) -> int:
    """Start an engine that shares nothing with this process; returns its pid."""
    with open(os.open(folder / _NOTE, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
        json.dump({"args": arguments, "env": dict(env)}, file)
    return forking.spawn_leader(("-m", __name__, str(os.getpid()), str(folder)), log=log, env=os.environ)


def main() -> None:
    """The spawned engine."""
    parent, folder = int(sys.argv[1]), Path(sys.argv[2])
    forking.die_with(parent)
    note = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
    run_engine(note["args"], note["env"], folder, start="spawn")


if __name__ == "__main__":
    main()
