"""Words for what a pod suffers from: each of the kubelet's and the scheduler's phrases to one of our reasons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twinpod.api import names
from twinpod.api.names import Reason
from twinpod.errors import EXIT_INPUT
from twinpod_operator.nouns import ContainerEnd, Finding, Manifest

_WAITING = {
    "ImagePullBackOff": Reason.IMAGE_PULL,
    "ErrImagePull": Reason.IMAGE_PULL,
    "InvalidImageName": Reason.IMAGE_PULL,
    "ErrImageNeverPull": Reason.IMAGE_PULL,
    "RegistryUnavailable": Reason.IMAGE_PULL,
    "CreateContainerConfigError": Reason.CREATE_CONTAINER,
    "CreateContainerError": Reason.CREATE_CONTAINER,
    "RunContainerError": Reason.CREATE_CONTAINER,
    "PreCreateHookError": Reason.CREATE_CONTAINER,
}
_OUT_OF_MEMORY = ("OOMKilled", "killed for memory", "out of memory")
_SHARED_MEMORY = ("SharedMemoryTooSmall", "shared memory", "/dev/shm")
_IMAGE_MEND = "push the image where nodes can pull it, or change "
_IMAGES = {
    "master": "TWINPOD_MASTER_IMAGE of the operator",
    "trainer": "hybrid.trainer.image",
    "inference": "inference.image",
}
_ROOM_MEND = "add nodes with room, or lower resources, accelerators or replicas in the spec"
_OF_EVERY_POD = "no new claims to deallocate"  # the scheduler says it of pods without any claim, too
_MESSAGE = 600  # most characters of a container's own words


def end_finding(end: ContainerEnd) -> Iterator[Finding]:
    """A container that ended badly, in its own last words."""
    if end.code == 0:
        return
    said = last_words(end.message)
    how = f"signal {end.signal}" if end.signal else f"exit {end.code}"
    line = f"container {end.container}: {how}" + (f": {said}" if said else "")
    if end.reason == "OOMKilled" or any(word in end.message for word in _OUT_OF_MEMORY):
        mend = f"raise resources.limits.memory of {end.container}"
        yield Finding(reason=Reason.OUT_OF_MEMORY.value, message=f"{line}; {mend}")
    elif any(word in said for word in _SHARED_MEMORY):
        yield Finding(reason=Reason.SHARED_MEMORY_TOO_SMALL.value, message=line)
    elif end.code == EXIT_INPUT:
        yield Finding(reason=Reason.INPUT_ERROR.value, message=line)
    else:
        yield Finding(reason=Reason.CRASHED.value, message=line)


def last_words(message: str) -> str:
    """The last line that is not empty; a log's end is many lines and the last one says what was wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:_MESSAGE] if lines else ""


def pod_finding(status: Manifest, conditions: dict[str, Any]) -> Iterator[Finding]:
    """What was done to the whole pod: eviction, preemption, a node that is gone."""
    said = str(status.get("message") or "")
    if status.get("reason"):
        reason = {"NodeLost": Reason.NODE_LOST, "Preempting": Reason.PREEMPTED}.get(status["reason"], Reason.EVICTED)
        if status.get("phase") == "Failed" or reason is Reason.NODE_LOST:
            yield Finding(reason=reason.value, message=f"{status['reason']}: {said}".rstrip(": "))
    stopped, target = conditions.get(names.QUEUE_STOPPED), conditions.get("DisruptionTarget")
    if stopped is not None and stopped.get("status") == "True":
        yield Finding(reason=Reason.PREEMPTED.value, message=_told(stopped, "taken back by the queue"))
    if target is not None and target.get("status") == "True":
        kinds = {
            "PreemptionByScheduler": Reason.PREEMPTED,
            "DeletionByTaintManager": Reason.NODE_LOST,
            "DeletionByPodGC": Reason.NODE_LOST,
        }
        reason = kinds.get(target.get("reason", ""), Reason.EVICTED)
        yield Finding(reason=reason.value, message=_told(target, "disrupted"))


def waiting_finding(item: Manifest) -> Iterator[Finding]:
    """What a container waits for, when that does not end by itself."""
    waiting = (item.get("state") or {}).get("waiting") or {}
    reason = _WAITING.get(waiting.get("reason", ""))
    if reason is None:
        return
    said = str(waiting.get("message") or waiting["reason"])
    image = f" (image {item['image']})" if reason is Reason.IMAGE_PULL and item.get("image") else ""
    mend = f"; {_IMAGE_MEND}{_IMAGES.get(item['name'], 'the image')}" if reason is Reason.IMAGE_PULL else ""
    yield Finding(reason=reason.value, message=f"container {item['name']}{image}: {said}"[:1024] + mend)


def scheduling_finding(condition: Manifest | None) -> Iterator[Finding]:
    """Why a pod has no node."""
    if condition is None or condition.get("status") == "True":
        return
    said = str(condition.get("message") or "")
    if condition.get("reason") == "SchedulingGated":
        yield Finding(reason=Reason.GATED.value, message=said)
        return
    low = said.lower().replace(_OF_EVERY_POD, "")
    if "device class" in low and ("not exist" in low or "not found" in low):
        mend = "install the driver that brings it, or name another in hybrid.deviceClass"
        yield Finding(reason=Reason.DEVICE_CLASS_MISSING.value, message=f"{said}; {mend}")
    elif "claim" in low and "persistentvolumeclaim" not in low:
        mend = "lower hybrid.accelerators, name another hybrid.deviceClass, or free devices"
        yield Finding(reason=Reason.CLAIM_UNALLOCATED.value, message=f"{said}; {mend}")
    else:
        yield Finding(reason=Reason.UNSCHEDULABLE.value, message=f"{said}; {_ROOM_MEND}" if said else _ROOM_MEND)


def _told(condition: Manifest, otherwise: str) -> str:
    reason, message = condition.get("reason", ""), condition.get("message", "")
    return f"{reason}: {message}" if reason and message else message or reason or otherwise
