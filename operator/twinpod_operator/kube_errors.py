"""What the API server says no with, as classes of the tree in `twinpod.errors`. Pure.

ApiError                     an answer of 400 or above
├── NotFound                 404: the object is gone
├── AlreadyExists            409 AlreadyExists
├── ApiConflict              409 otherwise: another resource version or uid; observe again
├── Expired                  410: a watch or a page is too old; list again
├── Refused                  for good, until somebody changes something: `finding` says what, for the status
└── Busy                     retryable: 429, 5xx; `after_s` when the server says how long
LeaseLost                    no write may be sent any more: another replica leads
"""

from __future__ import annotations

from typing import Any

from twinpod.api import names
from twinpod.errors import EnvironmentFault, Unreachable
from twinpod_operator.nouns import Finding


class ApiError(EnvironmentFault):
    """An answer of 400 or above; `code` is HTTP's, `reason` the API's."""

    def __init__(self, message: str, *, where: str, code: int = 0, reason: str = "") -> None:
        super().__init__(message, where=where)
        self.code, self.reason = code, reason


class NotFound(ApiError):
    """There is no such object."""


class AlreadyExists(ApiError):
    """An object of that name is there."""


class ApiConflict(ApiError):
    """The object has another uid or resource version than expected."""

    retryable = True


class Expired(ApiError):
    """The resource version is too old to go on from."""

    retryable = True


class Refused(ApiError):
    """Quota, Pod Security, a policy, a permission or the schema forbid it."""

    def __init__(self, message: str, *, where: str, code: int, reason: str, finding: Finding) -> None:
        super().__init__(message, where=where, code=code, reason=reason)
        self.finding = finding


class Busy(ApiError):
    """The server cannot answer now."""

    retryable = True
    after_s: float | None = None


class ApiUnreachable(Unreachable):
    """No answer at all: no connection, or none in time. A write may or may not have happened."""


class LeaseLost(EnvironmentFault):
    """This process leads no more; what it wanted to write was not sent."""


def error_of(code: int, status: dict[str, Any], where: str, retry_after: str = "") -> ApiError:
    """The class for an answer. `status`: the body (`metav1.Status`, or anything); `where`: verb and object."""
    reason, message = str(status.get("reason") or ""), str(status.get("message") or f"HTTP {code}")
    if code == 404:
        return NotFound(message, where=where, code=code, reason=reason)
    if code == 409:
        kind = AlreadyExists if reason == "AlreadyExists" else ApiConflict
        return kind(message, where=where, code=code, reason=reason)
    if code == 410:
        return Expired(message, where=where, code=code, reason=reason)
    if code == 429 or code >= 500:
        busy = Busy(message, where=where, code=code, reason=reason)
        seconds = str(retry_after or (status.get("details") or {}).get("retryAfterSeconds") or "")
        busy.after_s = float(seconds) if seconds.isdigit() else None
        return busy
    refusal = refusal_of(code, message)
    mend = _MENDS.get(refusal)
    finding = Finding(reason=refusal, message=f"{message}; {mend}" if mend else message)
    return Refused(message, where=where, code=code, reason=reason, finding=finding)


_MENDS: dict[str, str] = {
    names.Reason.QUOTA_REFUSED: "raise the namespace's ResourceQuota, or lower resources or replicas in the spec",
    names.Reason.POD_SECURITY: "take it out of podPatch, or allow it by the namespace's pod-security label",
    names.Reason.PERMISSION_MISSING: "apply the operator's roles of this release (manifests/operator)",
}


def refusal_of(code: int, message: str) -> str:
    """The reason of ours for a refusal, from the words that the API server's plug-ins use."""
    if "violates PodSecurity" in message:
        return names.Reason.POD_SECURITY
    if "exceeded quota" in message or "failed quota" in message:
        return names.Reason.QUOTA_REFUSED
    if "Only one reference can have Controller" in message:
        return names.Reason.NAME_TAKEN
    if "is being terminated" in message:
        return names.Reason.NAMESPACE_TERMINATING
    if "denied the request" in message or "denied request" in message or "admission webhook" in message:
        return names.Reason.ADMISSION_REFUSED
    if "maximum" in message and "per " in message and "usage" in message:
        return names.Reason.ADMISSION_REFUSED  # LimitRange
    if code == 403 and " cannot " in message:
        return names.Reason.PERMISSION_MISSING
    return names.Reason.ADMISSION_REFUSED if code == 403 else names.Reason.CHILD_INVALID
