"""Bytes between ranks, without pickle: UTF-8 JSON and protobuf messages in uint8 tensors, over gloo groups.

The control group is gloo on GPUs too: commands are small, must not occupy the accelerator, and must arrive when its
memory is away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist

from twinpod.errors import EnvironmentFault, TwinpodError
from twinpod.rpc.errors import pack, unpack

T = TypeVar("T")


class Control:
    """Rank 0 speaks, all hear; all answer, rank 0 hears. Every method is collective.

    `timeout_s` is how long a rank waits for others that write files. One that died is noticed at once: its connections
    close.
    """

    def __init__(self, timeout_s: float) -> None:
        self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def broadcast(self, message: bytes) -> bytes:
        """Rank 0's `message`, on every rank; what others pass is ignored."""
        return broadcast(message, 0, self.group, speaks=self.rank == 0)

    def gather(self, message: bytes) -> list[bytes]:
        """Every rank's message in order of rank, on every rank. Padded to the longest: meant for short ones."""
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(message)
        dist.all_reduce(lengths, group=self.group)
        width = int(lengths.max())
        if width == 0:
            return [b""] * self.size
        mine = torch.zeros(width, dtype=torch.uint8)
        mine[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else mine[:0]
        every = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(every, mine, group=self.group)
        return [row[: int(length)].numpy().tobytes() for row, length in zip(every, lengths, strict=True)]

    def together(self, where: str, act: Callable[[], object] | None = None) -> None:
        """Run `act` on the ranks that give one, then meet.

        When any of them failed at a file, all raise the same EnvironmentFault.
        """
        failure = ""
        try:
            if act is not None:
                act()
        except OSError as error:
            failure = f"{type(error).__name__}: {error.strerror or error}"
        failures = [line.decode() for line in self.gather(failure.encode()) if line]
        if failures:
            raise EnvironmentFault(failures[0], where=where, mend="check space and permissions of the volume")


def broadcast(message: bytes, source: int, group: dist.ProcessGroup, *, speaks: bool) -> bytes:
    """`message` of the rank `source` on every rank of the group; collective."""
    length = torch.tensor([len(message)], dtype=torch.int64)
    dist.broadcast(length, src=source, group=group)
    if int(length) == 0:
        return b""
    payload = (
        torch.frombuffer(bytearray(message), dtype=torch.uint8)
        if speaks
        else torch.empty(int(length), dtype=torch.uint8)
    )
    dist.broadcast(payload, src=source, group=group)
    return bytes(payload.numpy())


class Replica:
    """The ranks that hold one copy of the model together, one data-parallel rank; the lowest of them leads."""

    def __init__(self, control: Control, dp_rank: int, timeout_s: float) -> None:
        """Collective over all ranks."""
        places = [int(line) for line in control.gather(str(dp_rank).encode())]
        members = [[rank for rank, found in enumerate(places) if found == one] for one in range(max(places) + 1)]
        self._control, self._members = control, members[dp_rank]
        self._group: dist.ProcessGroup | None = None
        for number, ranks in enumerate(members):  # every rank makes every group, in the same order
            group = dist.new_group(ranks, backend="gloo", timeout=timedelta(seconds=timeout_s)) if ranks[1:] else None
            if number == dp_rank:
                self._group = group

    @property
    def leads(self) -> bool:
        """This rank speaks to the outside for its replica."""
        return bool(self._control.rank == self._members[0])

    def relay(self, messages: Iterable[bytes], take: Callable[[bytes], None], finish: Callable[[], T]) -> T:
        """The leader's messages, one after the other, to `take` on every rank of the replica, then `finish`'s answer.

        Collective over all ranks; no message may be empty. What the leader's iterator, `take` or `finish` raises
        anywhere, every rank of every replica raises: they train together or not at all.
        """
        failure, answer = b"", None
        try:
            for message in messages if self.leads else iter(lambda: self._broadcast(b""), b""):
                if self.leads:
                    self._broadcast(message)
                failure = failure or _caught(partial(take, message))
        except TwinpodError as error:
            failure = pack(error)
        if self.leads:
            self._broadcast(b"")
        if not failure:
            try:
                answer = finish()
            except TwinpodError as error:
                failure = pack(error)
        failed = [line for line in self._control.gather(failure) if line]
        if failed or answer is None:
            raise unpack(failed[0])
        return answer

    def _broadcast(self, message: bytes) -> bytes:
        if self._group is None:
            return message
        return broadcast(message, self._members[0], self._group, speaks=self.leads)


def _caught(act: Callable[[], None]) -> bytes:
    try:
        act()
    except TwinpodError as error:
        return pack(error)
    return b""
