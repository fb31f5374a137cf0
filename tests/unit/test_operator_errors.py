"""What the API server says no with. The messages are the API server's own words."""

from __future__ import annotations

from typing import Any

import pytest

from twinpod.api.names import Reason
from twinpod_operator.kube_errors import (
    AlreadyExists,
    ApiConflict,
    ApiError,
    Busy,
    Expired,
    NotFound,
    Refused,
    error_of,
)


@pytest.mark.parametrize(
    ("code", "status", "kind", "retryable"),
    [
        (404, {"reason": "NotFound"}, NotFound, False),
        (409, {"reason": "AlreadyExists"}, AlreadyExists, False),
        (409, {"reason": "Conflict"}, ApiConflict, True),
        (410, {"reason": "Expired"}, Expired, True),
        (422, {"reason": "Invalid"}, Refused, False),
        (403, {"reason": "Forbidden"}, Refused, False),
        (429, {"reason": "TooManyRequests"}, Busy, True),
        (500, {}, Busy, True),
        (504, {"message": "a proxy's page"}, Busy, True),
    ],
)
def test_each_answer_has_its_class(code: int, status: dict[str, Any], kind: type[ApiError], retryable: bool) -> None:
    error = error_of(code, status, "create of demo/pods")
    assert type(error) is kind
    assert error.retryable is retryable
    assert "create of demo/pods" in error.line()


@pytest.mark.parametrize(
    ("code", "message", "reason"),
    [
        (
            403,
            (
                'pods "x-hybrid-0-a1" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation '
                "!= false (container ...)"
            ),
            Reason.POD_SECURITY,
        ),
        (
            403,
            'pods "x-master-a1" is forbidden: exceeded quota: small, requested: pods=1, used: pods=2, limited: pods=2',
            Reason.QUOTA_REFUSED,
        ),
        (403, 'pods "x" is forbidden: failed quota: small: must specify limits.memory', Reason.QUOTA_REFUSED),
        (
            403,
            'pods "x" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi',
            Reason.ADMISSION_REFUSED,
        ),
        (403, 'admission webhook "a.b.c" denied the request: no', Reason.ADMISSION_REFUSED),
        (
            422,
            "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no",
            Reason.ADMISSION_REFUSED,
        ),
        (
            403,
            'pods is forbidden: User "system:serviceaccount:a:b" cannot create resource "pods" in API group ""',
            Reason.PERMISSION_MISSING,
        ),
        (
            403,
            (
                'secrets "x-tls" is forbidden: unable to create new content in namespace demo because it is being '
                "terminated"
            ),
            Reason.NAMESPACE_TERMINATING,
        ),
        (422, 'Service "x" is invalid: spec.ports: Required value', Reason.CHILD_INVALID),
        (
            422,
            'ConfigMap "x" is invalid: metadata.ownerReferences: Only one reference can have Controller set to true',
            Reason.NAME_TAKEN,
        ),
        (400, "Pod in version v1 cannot be handled", Reason.CHILD_INVALID),
    ],
)
def test_a_refusal_has_the_reason_that_a_person_looks_for(code: int, message: str, reason: Reason) -> None:
    error = error_of(code, {"message": message}, "create")
    assert isinstance(error, Refused)
    assert error.finding.reason == reason
    assert error.finding.message.startswith(message)
    if reason in (Reason.QUOTA_REFUSED, Reason.POD_SECURITY, Reason.PERMISSION_MISSING):
        assert len(error.finding.message) > len(message), "what mends it is said, too"


def test_a_busy_server_says_how_long() -> None:
    error = error_of(429, {}, "list", retry_after="3")
    assert isinstance(error, Busy)
    assert error.after_s == 3
