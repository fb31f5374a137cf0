"""The election's decisions, and the fence that every write passes."""

from __future__ import annotations

from typing import Any

import pytest

from twinpod_operator.fence import Fence
from twinpod_operator.kube_errors import LeaseLost
from twinpod_operator.leader import Seen, look, may_take


def lease(holder: str, version: str) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": version}, "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15}}


@pytest.mark.parametrize(
    ("what", "seen", "taken"),
    [
        ("there is no lease", None, True),
        ("it was given away", Seen(holder="", version="1", duration_s=15, since=100), True),
        ("it is our own", Seen(holder="me", version="1", duration_s=15, since=100), True),
        ("it was renewed lately", Seen(holder="other", version="1", duration_s=15, since=90), False),
        ("it was not renewed for its duration", Seen(holder="other", version="1", duration_s=15, since=84), True),
    ],
)
def test_who_may_take_the_lease_at_100(what: str, seen: Seen | None, taken: bool) -> None:
    assert may_take(seen, "me", 100.0) is taken, what


def test_how_long_it_has_not_changed_is_measured_by_our_own_clock() -> None:
    first = look(lease("other", "1"), None, 10.0)
    again = look(lease("other", "1"), first, 20.0)
    renewed = look(lease("other", "2"), again, 30.0)
    assert [seen.since for seen in (first, again, renewed)] == [10.0, 10.0, 30.0]


def test_the_fence_opens_with_a_renewal_and_closes_by_itself() -> None:
    now = [100.0]
    fence = Fence(10, clock=lambda: now[0])
    with pytest.raises(LeaseLost):
        fence.check()
    fence.renewed(sent_at=100.0)
    fence.check()
    now[0] = 109.9
    fence.check()
    now[0] = 110.0
    with pytest.raises(LeaseLost, match="nothing is written any more"):
        fence.check()


def test_a_renewal_counts_from_when_it_was_sent() -> None:
    fence = Fence(10, clock=lambda: 111.0)
    fence.renewed(sent_at=100.0)
    assert not fence.open


def test_a_closed_fence_opens_only_by_a_renewal() -> None:
    fence = Fence(10, clock=lambda: 1.0)
    fence.renewed(sent_at=0.0)
    fence.close()
    assert not fence.open
