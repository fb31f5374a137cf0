"""Repeat detection over token ids (paper 2): where an answer begins to go round in circles. Pure.

The rule. An answer repeats when its last `ngram * count` tokens are one block of at most `ngram` tokens over and over.
So a block of exactly `ngram` tokens counts when it stands `count` times in a row, and a shorter block when it fills the
same length: one threshold for every loop up to `ngram` tokens, with no blind spot for loops whose length does not
divide `ngram`.

The answer ends at the first token at which the rule holds. That place depends on the tokens alone, never on when
somebody looked: a check at every token, at every 32nd or at the end cuts at the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Repeat", "find"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """Where an answer repeats: `tokens[start:end]` is a block of `period` tokens over and over; `end` is the earliest
    possible.
    """

    start: int
    end: int
    period: int


def find(tokens: Sequence[int], *, ngram: int, count: int, since: int = 0) -> Repeat | None:
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
        end = _first_end(tokens, period=period, begin=begin, last=last, window=window, since=since)
        if end is not None:
            best = Repeat(start=end - window, end=end, period=period)
    return best


def _first_end(tokens: Sequence[int], *, period: int, begin: int, last: int, window: int, since: int) -> int | None:
    """The first `end` in `(since, last]` such that `tokens[end - window:end]` has the period; looks no further back
    than `begin`.
    """
    run = period  # tokens up to here that agree with the ones `period` before them, and the first block itself
    for index in range(begin + period, last):
        run = run + 1 if tokens[index] == tokens[index - period] else period
        if run >= window and index + 1 > since:
            return index + 1
    return None
