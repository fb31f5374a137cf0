"""Repeat detection over token ids (paper 2): where an answer begins to go round in circles. Pure.

The rule. An answer repeats when its last `ngram * count` tokens are one block of at most `ngram` tokens over and over.
So a block of exactly `ngram` tokens counts when it stands `count` times in a row, and a shorter block when it fills the
same length: one threshold for every loop up to `ngram` tokens, with no blind spot for loops whose length does not
divide `ngram`.

The answer ends at the first token at which the rule holds. That place depends on the tokens alone, never on when
somebody looked: a check at every token, at every 32nd or at the end cuts at the same place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twinpod.records.arrays import TokenIds

__all__ = ["Repeat", "find"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """Where an answer repeats: `tokens[start:end]` is a block of `period` tokens over and over; `end` is the earliest
    possible.
    """

    start: int
    end: int
    period: int


def find(tokens: TokenIds, *, ngram: int, count: int, since: int = 0) -> Repeat | None:
    """The first repeat whose end lies after `since`, or None.

    `ngram`: longest block; 0 switches detection off. `count`: times in a row, at least 2 (one block is no repeat).
    `since`: tokens that an earlier call has seen already; the work is `ngram` times the number of new tokens plus one
    window, not the whole answer.
    """
    if ngram < 1 or count < 2:
        return None
    window = ngram * count
    if len(tokens) < window:
        return None
    begin = max(0, since + 1 - window)
    best: Repeat | None = None
    for period in range(1, ngram + 1):
        # only an earlier end is better; the shorter period wins a tie
        last = len(tokens) if best is None else best.end - 1
        end = _first_end(tokens, period=period, begin=begin, last=last, window=window)
        if end is not None:
            best = Repeat(start=end - window, end=end, period=period)
    return best


def _first_end(tokens: TokenIds, *, period: int, begin: int, last: int, window: int) -> int | None:
    """The first `end` up to `last` such that `tokens[end - window:end]` has the period; looks no further back than
    `begin`.
    """
    ids = tokens.array[begin:last]
    differs = np.flatnonzero(ids[period:] != ids[:-period])  # places that end a run of equal ones
    bounds = np.concatenate(([-1], differs, [len(ids) - period]))
    long = np.flatnonzero(np.diff(bounds) > window - period)  # runs of at least `window - period`, after a first block
    return int(begin + bounds[long[0]] + 1 + window) if long.size else None
