"""Where an answer begins to repeat."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpod.records.arrays import TokenIds
from twinpod.rollout.repeat import Repeat, find

TABLE = [
    # tokens, ngram, count -> (start, end, period) or None
    ("nothing repeats", [1, 2, 3, 4, 5, 6], 2, 2, None),
    ("a block of ngram tokens, count times", [9, 1, 2, 1, 2, 7], 2, 2, (1, 5, 2)),
    ("a shorter block that fills the same length", [9, 5, 5, 5, 5, 7], 2, 2, (1, 5, 1)),
    ("a loop whose length does not divide ngram", [1, 2, 3, 1, 2, 3, 1, 2, 3], 4, 2, (0, 8, 3)),
    ("a longer block is no repeat", [1, 2, 3, 1, 2, 3], 2, 2, None),
    ("twice is not three times", [1, 2, 1, 2, 9], 2, 3, None),
    ("three times", [1, 2, 1, 2, 1, 2], 2, 3, (0, 6, 2)),
    ("the earliest end wins", [1, 2, 1, 2, 1, 2, 1, 2], 2, 2, (0, 4, 2)),
    ("an interrupted loop begins anew", [1, 2, 1, 9, 1, 2, 1, 2], 2, 2, (4, 8, 2)),
    ("a doubled letter is no repeat", [5, 5, 1, 2], 2, 2, None),
    ("switched off", [5, 5, 5, 5], 0, 2, None),
    ("once is no repeat", [5, 5, 5, 5], 2, 1, None),
    ("too short", [5, 5, 5], 2, 2, None),
    ("empty", [], 2, 2, None),
]


@pytest.mark.parametrize(
    ("tokens", "ngram", "count", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_a_repeat_is_one_block_over_and_over(tokens, ngram, count, expected):
    found = find(TokenIds(tokens), ngram=ngram, count=count)
    assert found == (None if expected is None else Repeat(start=expected[0], end=expected[1], period=expected[2]))


def _by_definition(tokens: list[int], ngram: int, count: int, since: int) -> Repeat | None:
    window = ngram * count
    for end in range(max(window, since + 1), len(tokens) + 1):
        last = tokens[end - window : end]
        for period in range(1, ngram + 1):
            if all(last[i] == last[i - period] for i in range(period, window)):
                return Repeat(start=end - window, end=end, period=period)
    return None


@given(
    tokens=st.lists(st.integers(0, 2), max_size=40),
    ngram=st.integers(1, 4),
    count=st.integers(2, 4),
    since=st.integers(0, 40),
)
def test_it_finds_what_the_definition_says(tokens, ngram, count, since):
    assert find(TokenIds(tokens), ngram=ngram, count=count, since=since) == _by_definition(tokens, ngram, count, since)


@given(tokens=st.lists(st.integers(0, 1), max_size=40), ngram=st.integers(1, 3), every=st.integers(1, 9))
def test_where_it_cuts_does_not_depend_on_when_somebody_looks(tokens, ngram, every):
    looked = None
    for upto in range(every, len(tokens) + every, every):
        looked = find(TokenIds(tokens[:upto]), ngram=ngram, count=2, since=max(0, upto - every))
        if looked:
            break
    assert looked == find(TokenIds(tokens), ngram=ngram, count=2)
