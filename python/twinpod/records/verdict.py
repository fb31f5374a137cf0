"""What ended pods mean for a job: local mode and the operator decide by the same function. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

INPUT_ERROR = 2  # exit code that a restart cannot mend


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a pod ended. `code` is the first container's that did not end with 0, else 0."""

    pod: str
    code: int
    reason: str  # one line for a person; empty when it succeeded


class Verdict(StrEnum):
    """What becomes of the job."""

    GOES_ON = "goes on"
    SUCCEEDED = "succeeded"
    RESTARTS = "restarts"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A verdict with its reason, one line."""

    verdict: Verdict
    reason: str


def decide(outcomes: Sequence[Outcome], master: str, restarts: int, most: int) -> Decision:
    """From the pods that have ended: the job follows its master when that succeeded, and its first failed pod
    otherwise.

    A pod other than the master that ended well while the master runs is no reason for anything: the master will miss
    it.
    """
    if any(outcome.pod == master and outcome.code == 0 for outcome in outcomes):
        return Decision(verdict=Verdict.SUCCEEDED, reason="")
    failed = next((outcome for outcome in outcomes if outcome.code != 0), None)
    if failed is None:
        return Decision(verdict=Verdict.GOES_ON, reason="")
    if failed.code == INPUT_ERROR:
        return Decision(verdict=Verdict.FAILED, reason=failed.reason)
    if restarts >= most:
        return Decision(verdict=Verdict.FAILED, reason=f"{failed.reason}; all {most} restarts are used up")
    return Decision(verdict=Verdict.RESTARTS, reason=f"{failed.reason}; restart {restarts + 1} of {most}")
