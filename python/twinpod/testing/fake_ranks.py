"""Ranks without Megatron: one process that talks to the training half as rank 0 does. `python -m
twinpod.testing.fake_ranks`.

A command's argument says what becomes of it: `die` ends the process, `hang` never ends it, `fail` reports an error,
`refuse` ends the process as a rank that finds the input wrong; anything else is done, with the argument as detail.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from twinpod.api import names
from twinpod.rpc.channel import ask_blocking, blocking_channel
from twinpod.rpc.v1 import half_pb2, half_pb2_grpc


def main() -> None:
    """Until EXIT."""
    link, attempt = os.environ["TWINPOD_LINK"], int(os.environ["TWINPOD_ATTEMPT"])
    channel = blocking_channel(link, Path(os.environ["TWINPOD_TLS"]))
    stub = half_pb2_grpc.TrainerLinkStub(channel)  # type: ignore[no-untyped-call]
    while True:
        request = half_pb2.NextCommandRequest(attempt=attempt, wait_s=20.0, ready=True)
        command = ask_blocking(stub.NextCommand, request, timeout=30.0, where=link, wait=True)
        if not command.verb:
            continue
        if command.argument == "die":
            sys.exit("twinpod: the test wants this rank dead")
        if command.argument == "refuse":
            (Path(os.environ["TWINPOD_RUN"]) / names.INPUT_ERROR_FILE).write_text("config.json: it is wrong")
            sys.exit("twinpod: as torchrun, which does not hand on the rank's exit code")
        if command.argument == "hang":
            threading.Event().wait()
        error = "EngineFault: the test wants it to fail" if command.argument == "fail" else ""
        reply = half_pb2.Reply(key=command.key, error=error, retryable=bool(error), detail=command.argument)
        ask_blocking(stub.Report, reply, timeout=30.0, where=link, wait=True)
        if command.verb == "exit":
            return


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    main()
