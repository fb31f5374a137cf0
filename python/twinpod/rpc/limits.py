"""How large messages are, from one constant. Whoever makes a message fills it up to MESSAGE_BYTES by these sizes and
sends the rest in the next one; a single trajectory that is larger goes alone.

The sizes are upper bounds of what protobuf makes of a record; a property test holds them to that.
"""

from __future__ import annotations

from twinpod.records.arrays import TokenIds
from twinpod.records.rollout import SamplingSettings, Segment

MESSAGE_BYTES = 1 << 20  # what a message is filled up to
MESSAGE_LIMIT = 16 << 20  # what gRPC takes: a trajectory of 1M tokens with its log-probs has 8 MiB
LINE_CHARACTERS = 400  # most of an error's line within a message

_FIELDS = 96  # bytes of a record's numbers, tags and lengths
_NUMBER = 11  # bytes of an integer at most, tag included


def line(text: str) -> str:
    """Text of others, cut to what a message has room for."""
    return text if len(text) <= LINE_CHARACTERS else f"{text[:LINE_CHARACTERS]} .."


def item_bytes(item_id: str, prompt: TokenIds, sampling: SamplingSettings) -> int:
    """A work item without its trajectories."""
    return 2 * _FIELDS + len(item_id) + prompt.nbytes + _NUMBER * len(sampling.stop_token_ids)


def resumption_bytes(tokens: TokenIds) -> int:
    """One trajectory of a work item."""
    return _FIELDS + tokens.nbytes


def segment_bytes(segment: Segment) -> int:
    """One segment of a result."""
    return _FIELDS + segment.tokens.nbytes + segment.logps.nbytes + 4 * len(segment.pod)


def result_bytes(item_id: str, worker: str) -> int:
    """A result without segments, trajectories and troubles."""
    return _FIELDS + len(item_id) + 4 * len(worker)


def closed_bytes(trouble: str) -> int:
    """A trajectory that a result names, and what went wrong with it; a character has at most 4 bytes."""
    return _NUMBER + 4 * (len(trouble) + 2)
