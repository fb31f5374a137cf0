"""What ended pods mean for a job: local mode and the operator decide by the same function. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from twinpod.errors import EXIT_INPUT


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
    """A verdict with its reason, one line. `wrong_input`: it failed for what a person has to mend first."""

    verdict: Verdict
    reason: str
    wrong_input: bool = False


def decide(outcomes: Sequence[Outcome], master: str, restarts: int, most: int) -> Decision:
    """From the pods that have ended: the job follows its master when that succeeded, and its first failed pod
    otherwise.

    A pod other than the master that ended well while the master runs is no reason for anything: the master will miss
    it. A wrong input is told first and never tried again, whichever pod found it: the others end because of it.
    """
    if any(outcome.pod == master and outcome.code == 0 for outcome in outcomes):
        return Decision(verdict=Verdict.SUCCEEDED, reason="")
    if wrong := next((outcome for outcome in outcomes if outcome.code == EXIT_INPUT), None):
        return Decision(verdict=Verdict.FAILED, reason=wrong.reason, wrong_input=True)
    failed = next((outcome for outcome in outcomes if outcome.code != 0), None)
    if failed is None:
        return Decision(verdict=Verdict.GOES_ON, reason="")
    if restarts >= most:
        return Decision(verdict=Verdict.FAILED, reason=f"{failed.reason}; all {most} restarts are used up")
    return Decision(verdict=Verdict.RESTARTS, reason=f"{failed.reason}; restart {restarts + 1} of {most}")
