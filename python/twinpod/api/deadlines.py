"""How long the parts of a run may take: `spec.timeouts`. `timeouts` makes seconds of it."""

from __future__ import annotations

from twinpod.api.base import Duration, Part


class TimeoutsSpec(Part):
    """How long the parts of a run may take before it fails and is resumed: hours, minutes, seconds, as "1h30m"."""

    stall: Duration | None = None
    """A rollout phase in which no engine makes a token; 15m when left out. Long answers need no more."""
    pods: Duration | None = None
    """For both halves of every hybrid pod to report at the start; 15m when left out."""
    engine: Duration | None = None
    """For an engine to come up, or to take and serve new weights; 10m and 1s a 100 MB of weights when left out."""
    weights: Duration | None = None
    """For the trainer to publish weights or to move its state; 10m and 1s a 100 MB of weights when left out."""
    train: Duration | None = None
    """One training phase; 24h when left out."""
    snapshot: Duration | None = None
    """One snapshot or export; 1h and 1s a 3 million parameters when left out."""
    collective: Duration | None = None
    """One collective of the trainer's ranks: how far one may be behind the others; 10m when left out."""
