"""A rank's two lines to the outside, over gRPC: commands from the training half of its pod (rank 0 alone), batches from
the master (the first rank of each copy of the model).

The only file of this room that knows gRPC; `loop.py` owns the two ports that it fills.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from twinpod.errors import Unreachable
from twinpod.records.life import Command, Reply
from twinpod.records.training import DataLayout
from twinpod.rpc.batches import fetch_method, request_to_pb
from twinpod.rpc.channel import ask_blocking, ask_stream_blocking, blocking_channel
from twinpod.rpc.convert import command_from_pb, reply_to_pb
from twinpod.rpc.v1 import half_pb2, half_pb2_grpc

TURN_S = 20.0  # one turn of the long poll; ranks never wait longer than this for rank 0
MARGIN_S = 10.0  # beyond a turn, before the half counts as gone
PATIENCE_S = 60.0  # a half that restarts may be away for so long
FETCH_S = 540.0  # below the limit of a collective: the other ranks wait in one


class HalfClient:
    """The command source: `TrainerLink` of the training half."""

    def __init__(self, address: str, tls: Path, *, attempt: int) -> None:
        self._stub = half_pb2_grpc.TrainerLinkStub(blocking_channel(address, tls))  # type: ignore[no-untyped-call]
        self._where, self._attempt = f"training half {address}", attempt

    def next_command(self, *, ready: bool) -> Command | None:
        """None after a turn without a command; `Unreachable` when the half stays away for PATIENCE_S."""
        request = half_pb2.NextCommandRequest(attempt=self._attempt, wait_s=TURN_S, ready=ready)
        try:
            message = ask_blocking(self._stub.NextCommand, request, timeout=TURN_S + MARGIN_S, where=self._where)
        except Unreachable:
            message = ask_blocking(self._stub.NextCommand, request, timeout=PATIENCE_S, where=self._where, wait=True)
        return command_from_pb(message) if message.verb else None

    def report(self, reply: Reply) -> None:
        """Hand the outcome over; tried until the half has it or PATIENCE_S went by."""
        ask_blocking(self._stub.Report, reply_to_pb(reply), timeout=PATIENCE_S, where=self._where, wait=True)


class MasterClient:
    """The batch source of one data-parallel rank: `Master.FetchBatch`."""

    def __init__(self, address: str, tls: Path, *, rank: int, layout: DataLayout) -> None:
        self._method = fetch_method(blocking_channel(address, tls))
        self._where, self._rank, self._layout = f"master {address}", rank, layout

    def fetch(self, epoch: int, iteration: int) -> Iterator[bytes]:
        """The messages as they come, for `BatchReader`."""
        request = request_to_pb(epoch, iteration, self._rank, self._layout)
        return ask_stream_blocking(self._method, request, timeout=FETCH_S, where=self._where, wait=True)
