"""The memory of the accelerators, as the devices themselves tell it: before an engine takes it, the half looks.

What a process says of its own allocator is not enough (design 8.3): a rank that hangs in its end, or a context that
nobody counted, makes the engine size its cache by what is left, or die. So the half asks the driver (NVML), waits until
the other side has let go of all but a residue, and refuses with both numbers when it does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from twinpod.errors import EngineFault, EnvironmentFault

LOOK_EVERY_S = 0.25
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """One device's memory now, in bytes; what the driver keeps for itself is neither free nor anybody's."""

    name: str  # as NVML names it, to be found in nvidia-smi -L
    total: int
    free: int


class Devices(Protocol):
    """Whoever can be asked."""

    def look(self) -> Sequence[DeviceMemory]:
        """The devices that engines of this pod use. EnvironmentFault when they cannot be asked. Takes milliseconds."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """What must be free before an engine starts, and how long that may take."""

    residue: int  # bytes of a device that others may still hold
    deadline_s: float


def crowded(devices: Sequence[DeviceMemory], residue: int) -> list[DeviceMemory]:
    """Those whose memory is held by others beyond the residue. Pure."""
    return [one for one in devices if one.free < one.total - residue]


async def until_free(devices: Devices, terms: HandOver) -> None:
    """Return when every device is free but for the residue; EngineFault with both numbers at the deadline."""
    loop = asyncio.get_running_loop()
    end = loop.time() + terms.deadline_s
    while full := crowded(await asyncio.to_thread(devices.look), terms.residue):
        if loop.time() > end:
            worst, others = full[0], f" and {len(full) - 1} more" if full[1:] else ""
            raise EngineFault(
                f"an engine needs {(worst.total - terms.residue) / GIB:.1f} GiB of {worst.total / GIB:.1f},"
                f" {worst.free / GIB:.1f} are free after {terms.deadline_s:g} s",
                where=f"{worst.name}{others}",
                mend="see nvidia-smi for who holds it; raise hybrid.handOver.residue when that is the trainer at rest",
            )
        await asyncio.sleep(LOOK_EVERY_S)  # there is nothing to wait on


class Nvml:
    """The driver of NVIDIA's devices. `visible`: CUDA_VISIBLE_DEVICES; `count`: devices that engines use, the first
    ones of these. `library`: the module pynvml, imported when first asked.
    """

    def __init__(self, visible: str, count: int, library: Any = None) -> None:
        self._visible, self._count, self._library = visible, count, library

    def look(self) -> list[DeviceMemory]:
        """See Devices. A device that is divided (MIG) is looked at by its parts."""
        library = self._load()
        try:
            library.nvmlInit()
            try:
                parts = [part for handle in self._handles(library) for part in _parts(library, handle)]
                return [_memory(library, part) for part in parts[: self._count]]
            finally:
                library.nvmlShutdown()
        except library.NVMLError as error:
            raise _fault(str(error)) from error

    def _load(self) -> Any:
        if self._library is None:
            try:
                import pynvml
            except ImportError as error:
                raise _fault(str(error)) from error
            self._library = pynvml
        return self._library

    def _handles(self, library: Any) -> list[Any]:
        chosen = [one.strip() for one in self._visible.split(",") if one.strip()]
        if not chosen:
            return [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
        return [
            library.nvmlDeviceGetHandleByIndex(int(one)) if one.isdigit() else library.nvmlDeviceGetHandleByUUID(one)
            for one in chosen
        ]


def _parts(library: Any, handle: Any) -> list[Any]:
    try:
        divided = library.nvmlDeviceGetMigMode(handle)[0] == library.NVML_DEVICE_MIG_ENABLE
    except library.NVMLError:
        return [handle]  # cannot be divided, or is a part already
    if not divided:
        return [handle]
    found = []
    for index in range(library.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            found.append(library.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
        except library.NVMLError:
            continue  # a place without a part
    return found


def _memory(library: Any, handle: Any) -> DeviceMemory:
    memory = library.nvmlDeviceGetMemoryInfo(handle)
    return DeviceMemory(name=str(library.nvmlDeviceGetUUID(handle)), total=int(memory.total), free=int(memory.free))


def _fault(why: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"the devices cannot be asked for their free memory: {why}",
        where="NVML",
        mend="the image needs nvidia-ml-py, the container NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    )
