"""Giving a rank's accelerator memory away and taking it back (design.md 8.3).

`Memory` is the port of the loop; `RankMemory` its one implementation. On a GPU parameters and main weights go to host
memory and the gradient buffers are dropped; on a CPU, by setting, the very same code moves them to other host memory
and leaves their place empty, so that the way there and back is exercised everywhere and a use of offloaded state
fails loudly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from twinpod.errors import InUse, ProtocolError
from twinpod.trainer.megatron import RankModel

LOOK_EVERY_S = 0.25
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """A rank's device, in bytes, as the driver and torch tell it."""

    total: int
    free: int
    own: int  # what torch's allocator holds for this rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a rank sees that the engine has let go of its device: what others may still hold, and how long that may
    take.
    """

    ask: Callable[[], DeviceMemory]
    residue: int  # bytes
    deadline_s: float

    def until_free(self) -> None:
        """Return when the device is free but for the residue; InUse with both numbers at the deadline."""
        end = time.monotonic() + self.deadline_s
        while (memory := self.ask()).total - memory.free - memory.own > self.residue:
            if time.monotonic() > end:
                needed = memory.total - self.residue - memory.own
                raise InUse(
                    f"the trainer needs {needed / GIB:.1f} GiB of {memory.total / GIB:.1f},"
                    f" {memory.free / GIB:.1f} are free after {self.deadline_s:g} s",
                    where="onload",
                    mend="see nvidia-smi for who holds it; raise hybrid.handOver.residue when that is an engine asleep",
                )
            time.sleep(LOOK_EVERY_S)  # there is nothing to wait on


def device_memory(device: torch.device) -> DeviceMemory:
    """Of a GPU."""
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(total=int(total), free=int(free), own=int(torch.cuda.memory_reserved(device)))


class Memory(Protocol):
    """What the loop asks when the accelerator changes hands."""

    def offload(self) -> int:
        """Free the accelerator; returns the bytes that this process is still *observed* to hold there."""

    def onload(self) -> None:
        """Bring everything back, bit for bit."""

    def require(self) -> None:
        """ProtocolError when the state is away."""


class RankMemory:
    """Parameters and main weights of one rank, here or away.

    `enabled` False (a CPU without `offload: true`): both moves do nothing. `look`: at a device that an engine shares.
    """

    def __init__(self, rank: RankModel, *, enabled: bool, look: Look | None = None) -> None:
        self._rank, self._enabled, self._look = rank, enabled, look
        self._away: dict[str, Tensor] = {}
        self._sizes: dict[str, int] = {}

    def offload(self) -> int:
        """Idempotent.

        Parameters keep their identity, so an optimizer or a plan made before stays valid after `onload`.
        """
        if self._enabled and not self._away:
            pinned = self._rank.machine.device.type == "cuda"
            self._rank.optimizer.drop_gradients()
            for name, tensor in held_tensors(self._rank).items():
                home = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
                home.copy_(tensor.detach())
                self._away[name] = home
            self._release()
        return observed_bytes(self._rank)

    def onload(self) -> None:
        """Idempotent."""
        if not self._away:
            return
        if self._look is not None:
            self._look.until_free()
        self._restore()
        for name, tensor in held_tensors(self._rank).items():
            tensor.detach().copy_(self._away[name])
        self._away.clear()

    def require(self) -> None:
        """Called before every use of the weights."""
        if self._away:
            raise ProtocolError("the trainer's weights are offloaded", mend="order onload first")

    def _release(self) -> None:
        """Give the storages back; views into them (Megatron's flat buffers) stay valid tensors."""
        storages = {name: tensor.untyped_storage() for name, tensor in held_tensors(self._rank).items()}
        self._sizes = {name: storage.nbytes() for name, storage in storages.items()}
        for storage in storages.values():
            storage.resize_(0)
        if not self._rank.machine.is_cpu:
            from twinpod.trainer import platform_gpu

            platform_gpu.release(self._rank.model)

    def _restore(self) -> None:
        for name, tensor in held_tensors(self._rank).items():
            storage = tensor.untyped_storage()
            if storage.size() == 0:  # not yet grown back through another view of the same buffer
                storage.resize_(self._sizes[name])
        if not self._rank.machine.is_cpu:
            from twinpod.trainer import platform_gpu

            platform_gpu.restore(self._rank.model)


def held_tensors(rank: RankModel) -> dict[str, Tensor]:
    """What a rank keeps between iterations."""
    return rank.parameters | {f"main {name}": tensor for name, tensor in rank.optimizer.main_tensors().items()}


def observed_bytes(rank: RankModel) -> int:
    """Bytes that this process holds on the accelerator now; on a CPU, bytes of the tensors that are in place."""
    if rank.machine.is_cpu:
        return sum(tensor.untyped_storage().nbytes() for tensor in held_tensors(rank).values())
    return int(torch.cuda.memory_reserved(rank.machine.device))
