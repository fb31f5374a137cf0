"""The memory of devices: what NVML is asked, when an engine or a rank may take it, and both numbers when not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from twinpod.errors import EngineFault, EnvironmentFault, InUse
from twinpod.testing.halves import FakeDevices
from twinpod.trainer.memory import DeviceMemory as RankDevice
from twinpod.trainer.memory import Look
from twinpod_sidecar.devices import GIB, HandOver, Nvml, until_free

TERMS = HandOver(residue=6 * GIB, deadline_s=0.0)


class FakeNvml:
    """The module pynvml, as far as it is asked. Devices by index, some divided into parts; each is (uuid, free)."""

    NVML_DEVICE_MIG_ENABLE = 1

    class NVMLError(Exception):
        pass

    def __init__(self, devices: list[Any]) -> None:
        self.devices, self.open = devices, 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return self.devices[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        for device in self.devices:
            for one in device if isinstance(device, list) else [device]:
                if one[0] == uuid:
                    return one
        raise self.NVMLError("Not Found")

    def nvmlDeviceGetMigMode(self, device: Any) -> tuple[int, int]:
        if isinstance(device, list):
            return (1, 1)
        if device[0].startswith("MIG"):
            raise self.NVMLError("Not Supported")
        return (0, 0)

    def nvmlDeviceGetMaxMigDeviceCount(self, device: list[Any]) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: list[Any], index: int) -> Any:
        if index >= len(device):
            raise self.NVMLError("Not Found")
        return device[index]

    def nvmlDeviceGetUUID(self, device: tuple[str, int]) -> str:
        return device[0]

    def nvmlDeviceGetMemoryInfo(self, device: tuple[str, int]) -> Any:
        return SimpleNamespace(total=80 * GIB, free=device[1] * GIB)


FOUR = [("GPU-a", 80), ("GPU-b", 70), [("MIG-c", 9), ("MIG-d", 8)], ("GPU-e", 1)]


@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [
        ("", 2, ["GPU-a", "GPU-b"]),
        ("", 4, ["GPU-a", "GPU-b", "MIG-c", "MIG-d"]),
        ("3,1", 2, ["GPU-e", "GPU-b"]),
        ("GPU-e", 1, ["GPU-e"]),
        ("MIG-d", 1, ["MIG-d"]),
    ],
)
def test_the_devices_of_the_pods_engines_are_looked_at(visible: str, count: int, names: list[str]) -> None:
    library = FakeNvml(FOUR)
    found = Nvml(visible, count, library).look()
    assert [one.name for one in found] == names
    assert {one.total for one in found} == {80 * GIB}
    assert library.open == 0


def test_a_driver_that_cannot_be_asked_is_named_with_what_to_do() -> None:
    with pytest.raises(EnvironmentFault, match=r"NVML: .*Not Found; .*nvidia-ml-py.*compute,utility"):
        Nvml("GPU-x", 1, FakeNvml(FOUR)).look()


def test_this_machine_has_no_driver_and_says_so() -> None:
    with pytest.raises(EnvironmentFault, match="NVML"):
        Nvml("", 1).look()


async def test_an_engine_waits_until_the_other_side_has_let_go() -> None:
    devices = FakeDevices(20.0, 40.0, 76.0)
    await until_free(devices, HandOver(residue=6 * GIB, deadline_s=20.0))
    assert devices.looks == 3


async def test_an_engine_refuses_memory_that_somebody_holds_with_both_numbers() -> None:
    with pytest.raises(EngineFault, match=r"GPU-1: an engine needs 74\.0 GiB of 80\.0, 21\.5 are free.*handOver"):
        await until_free(FakeDevices(21.5), TERMS)


def test_a_rank_refuses_memory_that_the_engine_holds_and_counts_its_own_as_its_own() -> None:
    def look(free: int, own: int) -> Look:
        memory = RankDevice(total=80 * GIB, free=free * GIB, own=own * GIB)
        return Look(ask=lambda: memory, residue=6 * GIB, deadline_s=0.0)

    look(74, 0).until_free()
    look(30, 44).until_free()
    with pytest.raises(InUse, match=r"the trainer needs 72\.0 GiB of 80\.0, 30\.0 are free"):
        look(30, 2).until_free()
