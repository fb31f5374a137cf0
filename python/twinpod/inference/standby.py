"""The standby: a process that has already imported SGLang and forks an engine whenever one is wanted.

Theory of operation
-------------------
Importing SGLang takes about ten seconds, starting it after that takes under two. The life cycle `Restart` starts an
engine in every iteration, so the imports are paid once a pod: the standby imports the server, the scheduler, the
detokenizer, the model registry and the plug-ins, touches no accelerator and makes no thread (a fork copies only the
calling one), then waits. A fork shares the imported pages.

Not everything can be forked: a CUDA context and threads are not copied, and the library behind `Sleep`
(torch_memory_saver) is preloaded when a program is executed. Whoever drives the standby sees in the line `ready`
whether a fork would live, and says `"spawn": true` where it would not: the engine is then a program of its own, which
pays the imports at each start. With `--spawn` the standby imports nothing of SGLang: all engines will be such programs.

It is driven by its parent over JSON lines, one object a line (`--help` shows them). Everything else that anybody prints
goes to stderr.

    in   {"op": "start", "id": 1, "args": {server arguments}, "log": "/path", "env": {optional variables},
          "spawn": false}
    out  {"id": 1, "pid": 4711}
    in   {"op": "stop", "id": 2, "pid": 4711, "grace_s": 5.0}
    out  {"id": 2, "pid": 4711, "gone": true, "seconds": 0.04}     when every process of the group is observed gone
    in   {"op": "payload", "id": 3, "manifest": "/dev/shm/..json", "digest": "xxh3:..."}
    out  {"id": 3, "payload": "base64"}                              for SGLang's /update_weights_from_tensor
    out  {"id": 4, "error": "what is wrong and what to do"}         instead of any answer
    out  {"event": "ready", "imports_s": 9.7, "pid": 99, "threads": 1, "accelerator": false, "platform": "cpu",
          "imported": true}                                          when imports are done; platform "" is SGLang's own
    out  {"event": "exit", "pid": 4711, "status": -9}               an engine died without being told to

One thread, one `select`: on stdin, and on a pipe that signals write to. The end of stdin or SIGTERM kills all engines
and ends the standby; if the standby itself is killed, the kernel kills the engines (`forking.py`).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twinpod.errors import TwinpodError
from twinpod.inference import engine_folder, engine_process, forking, needs
from twinpod.needs import check_needs

__all__ = ["Standby", "main"]

_IMPORTED_LATE = (
    "openai_harmony",
    "sglang.srt.arg_groups.pipeline",
    "sglang.srt.distributed.device_communicators.custom_all_reduce",
    "sglang.srt.distributed.device_communicators.pymscclpp",
    "sglang.srt.distributed.device_communicators.shm_broadcast",
    "sglang.srt.dllm.algorithm",
    "sglang.srt.entrypoints.openai.serving_responses",
    "sglang.srt.mem_cache.rust_tree_core.adapter",
    "sglang.srt.rust_extensions.torch_build",
    "torch.utils.serialization",
    "uvicorn.protocols.http.h11_impl",
)
"""Modules that SGLang imports inside functions during its start, 0.2 s in all (found with `python -X importtime`)."""

_ON_A_CPU = ("twinpod.inference.attention_cpu", "twinpod.inference.kv_pool_cpu")


@dataclass(slots=True, kw_only=True)
class _End:
    """An engine that is going: who asked (None: nobody, its leader died), since and until when (monotonic seconds)."""

    id: int | None
    status: int
    began: float
    deadline: float


@dataclass(slots=True)
class Standby:
    """The loop. Holds the engines that it started, by their leaders' pids, and those that are going.

    `commands`, `answers`: descriptors of the protocol. Invariant: a pid is in `engines` (with its temporary folder)
    until its whole group is gone.
    """

    commands: int
    answers: int
    engines: dict[int, Path] = field(default_factory=dict)
    ends: dict[int, _End] = field(default_factory=dict)
    _buffer: bytes = b""
    _ending: bool = False

    def say(self, **message: Any) -> None:
        """Write one line to the parent; a parent that is gone ends the standby."""
        data = (json.dumps(message, separators=(",", ":")) + "\n").encode()
        try:
            while data:
                data = data[os.write(self.answers, data) :]
        except BrokenPipeError:
            self._ending = True

    def run(self) -> None:
        """Serve until the parent hangs up or SIGTERM; on return no engine is left."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._finish())
        with selectors.DefaultSelector() as selector:
            selector.register(self.commands, selectors.EVENT_READ)
            selector.register(ours, selectors.EVENT_READ)
            while not self._ending:
                for key, _ in selector.select(self._next_deadline()):
                    if key.fd == self.commands:
                        self._read()
                    else:
                        ours.recv(4096)
                self._collect()
        for leader in self.engines:
            forking.kill_group(leader)
        while any(forking.group_exists(leader) for leader in self.engines):
            forking.reap()
            time.sleep(0.002)
        for folder in self.engines.values():
            engine_folder.clear(folder)

    def _finish(self) -> None:
        self._ending = True

    def _next_deadline(self) -> float | None:
        # An engine's orphans become ours one by one, and only their own end sends a signal: look again soon.
        return 0.01 if self.ends else None

    def _read(self) -> None:
        chunk = os.read(self.commands, 65536)
        if not chunk:
            self._ending = True
            return
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                self._obey(line)

    def _obey(self, line: bytes) -> None:
        number: Any = None
        try:
            message = json.loads(line)
            number = message.get("id")
            match message.get("op"):
                case "start":
                    spawn = bool(message.get("spawn", False))
                    self._start(number, message["args"], message["log"], message.get("env", {}), spawn=spawn)
                case "stop":
                    self._stop(number, message["pid"], message.get("grace_s", 5.0))
                case "payload":
                    self.say(id=number, payload=make_payload(message["manifest"], message["digest"]))
                case other:
                    raise ValueError(f"unknown op {other!r}; known: start, stop, payload")
        except KeyError as error:
            self.say(id=number, error=f"the field {error} is missing in {line[:200].decode(errors='replace')}")
        except Exception as error:  # noqa: BLE001  # an answer, never a dead standby
            self.say(id=number, error=f"{type(error).__name__}: {error}")

    def _start(self, number: int, arguments: dict[str, Any], log: str, env: dict[str, str], *, spawn: bool) -> None:
        folder = engine_folder.make_folder()
        if spawn:
            pid = engine_process.spawn(arguments, env, folder, log=log)
        else:
            pid = forking.fork_leader(
                lambda: engine_process.run_engine(arguments, env, folder, start="fork"),
                log=log,
                close=(self.commands, self.answers),
            )
        self.engines[pid] = folder
        self.say(id=number, pid=pid)

    def _stop(self, number: int, pid: int, grace: float) -> None:
        if pid not in self.engines:
            self.say(id=number, pid=pid, gone=True, seconds=0.0)  # asked twice, or it died before
            return
        self._end_engine(pid, number, 0, grace)

    def _end_engine(self, pid: int, number: int | None, status: int, grace: float) -> None:
        now = time.monotonic()
        self.ends[pid] = _End(id=number, status=status, began=now, deadline=now + grace)
        forking.kill_group(pid)

    def _collect(self) -> None:
        """Reap; end what is left of engines whose leader died by itself; report those that are gone."""
        for ended in forking.reap():
            if ended.pid in self.engines and ended.pid not in self.ends:
                self._end_engine(ended.pid, None, ended.status, 5.0)
        now = time.monotonic()
        for pid, end in list(self.ends.items()):
            if forking.group_exists(pid):
                if now > end.deadline:
                    del self.ends[pid]
                    self.say(
                        id=end.id,
                        error=f"engine {pid} is still there {now - end.began:.1f} s after SIGKILL; "
                        "look for a process in state D (ps -eo pid,stat,wchan)",
                    )
                continue
            del self.ends[pid]
            engine_folder.clear(self.engines.pop(pid))
            if end.id is None:
                self.say(event="exit", pid=pid, status=end.status)
            else:
                self.say(id=end.id, pid=pid, gone=True, seconds=round(now - end.began, 4))


def preload() -> str:
    """Import all that an engine needs and load SGLang's plug-ins, without touching an accelerator.

    Returns the platform that engines run on: "cpu" is ours, "" is SGLang's own for the accelerator that is there.
    """
    import importlib

    import sglang.launch_server
    import sglang.srt.entrypoints.http_server
    import sglang.srt.managers.detokenizer_manager
    import sglang.srt.managers.scheduler
    import sglang.srt.models.registry  # noqa: F401  # imports every model file: the longest part
    from sglang.srt.platforms import current_platform
    from sglang.srt.plugins import load_plugins

    load_plugins()
    own = () if not current_platform.is_out_of_tree() else _ON_A_CPU
    for name in (*_IMPORTED_LATE, *own):
        try:
            importlib.import_module(name)
        except ImportError as error:  # only slower: the engine imports it itself if it wants it
            print(f"standby: {name} not imported early: {error}", file=sys.stderr)
    return "cpu" if own else ""


def look() -> str:
    """As `preload`, but for engines that will import SGLang themselves: looks for the accelerator only."""
    import torch

    return "" if torch.cuda.is_available() else "cpu"


def accelerator_touched(descriptors: Path = Path("/proc/self/fd")) -> bool:
    """Whether CUDA was initialised in this process; forked engines could then not use it.

    torch knows of its own; whatever library did it (a compiler, a driver's binding), the driver then holds its device
    for unified memory open. NVML, by which SGLang and torch look for devices here, opens others.
    """
    import torch

    return bool(torch.cuda.is_initialized()) or any(
        os.path.basename(target).startswith("nvidia-uvm") for target in _targets(descriptors)
    )


def _targets(descriptors: Path) -> list[str]:
    found = []
    for entry in descriptors.iterdir():
        try:
            found.append(os.readlink(entry))
        except FileNotFoundError:
            continue  # the one that listed the folder
    return found


def make_payload(manifest: str, digest: str) -> str:
    """The tensor that names a manifest to the weight loader, as SGLang's /update_weights_from_tensor wants it.

    A plain pickle: the few bytes travel inside. SGLang's own serializer shares a CPU tensor by file descriptor, whose
    sender must answer a connection later; that kills the server when it does not.
    """
    import base64
    import pickle

    import torch

    note = json.dumps({"manifest": manifest, "digest": digest}).encode()
    tensor = torch.frombuffer(bytearray(note), dtype=torch.uint8)
    return base64.b64encode(pickle.dumps([("twinpod.manifest", tensor)])).decode()


def main() -> None:
    """Entry point: `python -m twinpod.inference.standby`, driven over stdin and stdout."""
    parser = argparse.ArgumentParser(
        prog="twinpod.inference.standby", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spawn", action="store_true", help="import nothing of SGLang: every engine will be spawned")
    parser.add_argument("--sleep", action="store_true", help="engines on accelerators will give their memory back")
    asked = parser.parse_args()
    only_spawn: bool = asked.spawn
    os.environ.setdefault(
        "PYTORCH_NVML_BASED_CUDA_CHECK", "1"
    )  # "is there a GPU" without initialising CUDA, which no fork survives
    commands, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    began = time.monotonic()
    platform = look() if only_spawn else preload()
    if platform == "":
        check_needs(needs.on_gpus(imported=not only_spawn, sleep=asked.sleep), mend=needs.MEND)
    gc.collect()
    gc.freeze()  # forked engines then never write to these objects' headers, and share their pages
    forking.become_subreaper()
    standby = Standby(commands, answers)
    standby.say(
        event="ready",
        imports_s=round(time.monotonic() - began, 2),
        pid=os.getpid(),
        threads=len(os.listdir("/proc/self/task")),  # must be 1: a fork copies the calling thread only
        accelerator=accelerator_touched(),  # must be false
        platform=platform,
        imported=not only_spawn,
    )
    standby.run()


if __name__ == "__main__":
    try:
        main()
    except TwinpodError as trouble:
        print(f"twinpod.inference.standby: {trouble.line()}", file=sys.stderr)
        sys.exit(trouble.exit_code)
    sys.exit(0)
