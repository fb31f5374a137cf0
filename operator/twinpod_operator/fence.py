"""Proof that this process may write: its lease was renewed so lately that nobody else can have taken it.

Time is the machine's boot clock, which goes on while a process is stopped (SIGSTOP) or a machine sleeps. Every write
asks `check` right before its bytes go out, so that a process that was stopped in the middle of anything sends nothing
that it decided before.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from twinpod_operator.kube_errors import LeaseLost


def boot_clock() -> float:
    """Seconds since the machine started, those included in which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Fence:
    """Closed until the first `renewed`, open for `lasting_s` after each.

    `lasting_s` must be less than the lease's duration, which others wait before they take it.
    """

    def __init__(self, lasting_s: float, clock: Callable[[], float] = boot_clock) -> None:
        self._lasting_s, self._clock = lasting_s, clock
        self._until = float("-inf")

    def renewed(self, sent_at: float) -> None:
        """The lease was renewed by a request that was sent at `sent_at` (by the same clock)."""
        self._until = max(self._until, sent_at + self._lasting_s)

    def close(self) -> None:
        """Nothing is written from now on."""
        self._until = float("-inf")

    @property
    def open(self) -> bool:
        """Whether a write may be sent now."""
        return self._clock() < self._until

    def check(self) -> None:
        """LeaseLost when a write may not be sent."""
        if not self.open:
            raise LeaseLost("the lease was not renewed in time; nothing is written any more", where="leader election")
