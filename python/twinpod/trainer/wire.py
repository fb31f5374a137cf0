"""Bytes between ranks, without pickle: UTF-8 JSON and flat arrays in uint8 tensors, over a gloo group.

The control group is gloo on GPUs too: commands are small, must not occupy the accelerator, and must arrive when its
memory is away.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from twinpod.errors import EnvironmentFault
from twinpod.records.training import Batch, Sample


class Control:
    """Rank 0 speaks, all hear; all answer, rank 0 hears. Every method is collective."""

    def __init__(self, timeout_s: float) -> None:
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def broadcast(self, message: bytes) -> bytes:
        """Rank 0's `message`, on every rank; what others pass is ignored."""
        length = torch.tensor([len(message)], dtype=torch.int64)
        dist.broadcast(length, src=0, group=self._group)
        if int(length) == 0:
            return b""
        payload = (
            torch.frombuffer(bytearray(message), dtype=torch.uint8)
            if self.rank == 0
            else torch.empty(int(length), dtype=torch.uint8)
        )
        dist.broadcast(payload, src=0, group=self._group)
        return bytes(payload.numpy())

    def gather(self, message: bytes) -> list[bytes]:
        """Every rank's message in order of rank, on every rank. Padded to the longest: meant for short ones."""
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(message)
        dist.all_reduce(lengths, group=self._group)
        width = int(lengths.max())
        if width == 0:
            return [b""] * self.size
        mine = torch.zeros(width, dtype=torch.uint8)
        mine[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else mine[:0]
        every = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(every, mine, group=self._group)
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


def pack_batch(batch: Batch) -> bytes:
    """A batch as one JSON line of counts and flat little-endian columns behind it: long answers stay cheap."""
    samples = batch.samples
    head = {
        "iteration": batch.iteration,
        "version": batch.version,
        "group_size": batch.group_size,
        "groups": [sample.group for sample in samples],
        "prompts": [len(sample.prompt_tokens) for sample in samples],
        "responses": [len(sample.response_tokens) for sample in samples],
        "logps": [len(sample.behaviour_logps) for sample in samples],
        "versions": [len(sample.versions) for sample in samples],
    }
    columns = (
        np.asarray([token for sample in samples for token in sample.prompt_tokens], dtype="<i4"),
        np.asarray([token for sample in samples for token in sample.response_tokens], dtype="<i4"),
        np.asarray([logp for sample in samples for logp in sample.behaviour_logps], dtype="<f8"),
        np.asarray([version for sample in samples for version in sample.versions], dtype="<i8"),
        np.asarray([sample.advantage for sample in samples], dtype="<f8"),
        np.asarray([sample.reward for sample in samples], dtype="<f8"),
    )
    return b"".join((json.dumps(head).encode(), b"\n", *(column.tobytes() for column in columns)))


def unpack_batch(message: bytes) -> Batch:
    """The inverse of `pack_batch`."""
    line = message.index(b"\n")
    head = json.loads(message[:line])
    cursor = line + 1

    def column(kind: str, counts: list[int]) -> list[list[float]]:
        nonlocal cursor
        flat = np.frombuffer(message, dtype=kind, count=sum(counts), offset=cursor)
        cursor += flat.nbytes
        return [piece.tolist() for piece in np.split(flat, np.cumsum(counts)[:-1])] if counts else []

    ones = [1] * len(head["groups"])
    rows = zip(
        head["groups"],
        column("<i4", head["prompts"]),
        column("<i4", head["responses"]),
        column("<f8", head["logps"]),
        column("<i8", head["versions"]),
        column("<f8", ones),
        column("<f8", ones),
        strict=True,
    )
    samples = tuple(
        Sample(
            group=group,
            prompt_tokens=tuple(prompt),
            response_tokens=tuple(response),
            behaviour_logps=tuple(logps),
            versions=tuple(versions),
            advantage=advantage,
            reward=reward,
        )
        for group, prompt, response, logps, versions, (advantage,), (reward,) in rows
    )
    return Batch(iteration=head["iteration"], version=head["version"], group_size=head["group_size"], samples=samples)
