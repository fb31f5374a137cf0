"""How long everything may take that somebody waits for: one record, filled from the job (`api.timeouts`).

What a person may want to change has a field in `spec.timeouts`; the rest stands here once, in relation to it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds."""

    # spec.timeouts
    stall_s: float = 900.0  # a rollout phase in which no engine makes a token
    pods_s: float = 900.0  # for the halves of all hybrid pods to report at the start
    engine_s: float = 600.0  # for an engine to come up, or to take a version and serve it
    weights_s: float = 600.0  # for the trainer to publish a version, or to move its state between memories
    train_s: float = 86_400.0  # one training phase
    snapshot_s: float = 3_600.0  # one snapshot or export
    collective_s: float = 600.0  # one collective of the ranks: how long one may be behind the others

    # between master and rollout workers
    longest_pull_s: float = 20.0
    pull_slack_s: float = 10.0  # beyond the wait that a pull asks for, before the master counts as gone
    give_s: float = 60.0  # the master stores before it answers
    silent_worker_s: float = 45.0  # after which what a worker holds is handed out again; longer than two pulls
    cut_s: float = 60.0  # to give back what was cut
    helper_cut_s: float = 3.0  # the same, for workers that nobody waits for

    # between master and halves
    rest_s: float = 120.0  # for engines to free what the trainer needs
    exit_s: float = 20.0  # for a half to answer that it goes

    @property
    def engine_start_s(self) -> float:
        """From the fork of an engine to its first healthy answer: half of what the order has."""
        return self.engine_s / 2

    @property
    def fetch_s(self) -> float:
        """For a rank's share of the batch: the other ranks wait in a collective meanwhile."""
        return 0.9 * self.collective_s


USUAL = Timeouts()  # of a job that says nothing, with a small model
