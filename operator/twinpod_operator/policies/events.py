"""What a person would want to be told of, as the difference between two statuses. Pure."""

from __future__ import annotations

from twinpod.api.names import Condition, Reason
from twinpod_operator.nouns import Emit, Manifest

__all__ = ["events"]

_QUIET = (Reason.STARTING, Reason.PODS_MISSING, Reason.NOT_SYNCED, Reason.GATED, Reason.SCALING, Reason.NO_QUEUE)


def events(before: Manifest | None, after: Manifest) -> list[Emit]:
    """Events for what has changed; none when nothing has."""
    old, new = _conditions(before), _conditions(after)
    result: list[Emit] = []
    suspended = new.get(Condition.SUSPENDED, {}).get("status") == "True"  # nothing follows
    if before and _faults(after) > _faults(before) and not suspended:
        message = f"attempt {after['attempt']} follows: {after['lastFault']}"
        result.append(Emit(type="Warning", reason=Reason.RESTARTING.value, message=message))
    for kind, sort in ((Condition.SUCCEEDED, "Normal"), (Condition.FAILED, "Warning")):
        if _turned_true(old, new, kind):
            said = new[kind]
            result.append(
                Emit(type=sort, reason=kind.value, message=f"{said['reason']}: {said['message']}".rstrip(": "))
            )
    if _turned_true(old, new, Condition.SUSPENDED):
        result.append(Emit(type="Normal", reason=Reason.SUSPENDED.value, message="pods are stopped, state is kept"))
    if not result:
        result += _readiness(old.get(Condition.READY), new.get(Condition.READY))
    return result


def _readiness(old: Manifest | None, new: Manifest | None) -> list[Emit]:
    if new is None:
        return []
    was, now = (old or {}).get("status"), new["status"]
    if now == "True":
        return [Emit(type="Normal", reason="Ready", message=new["message"] or "it runs")] if was != "True" else []
    if new["reason"] in _QUIET or (old is not None and old["reason"] == new["reason"]):
        return []
    quiet = new["reason"] in (Reason.SUSPENDED, Reason.COMPLETED, Reason.QUEUED)
    return [Emit(type="Normal" if quiet else "Warning", reason=new["reason"], message=new["message"])]


def _turned_true(old: dict[str, Manifest], new: dict[str, Manifest], kind: Condition) -> bool:
    is_so = kind in new and new[kind]["status"] == "True"
    return is_so and (kind not in old or old[kind]["status"] != "True")


def _faults(status: Manifest) -> int:
    """Attempts that have ended other than by being suspended."""
    counters = ("applicationFaults", "infrastructureFaults", "schedulingRetries", "preemptions")
    return sum(int(status.get(counter, 0)) for counter in counters)


def _conditions(status: Manifest | None) -> dict[str, Manifest]:
    return {item["type"]: item for item in (status or {}).get("conditions") or ()}
