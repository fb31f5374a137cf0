"""Vectors of tokens and log-probs are values of one encoding."""

from __future__ import annotations

import numpy as np
import pytest

from twinpod.errors import ProtocolError
from twinpod.records.arrays import LogProbs, TokenIds


def test_a_vector_survives_its_bytes_without_a_copy() -> None:
    tokens = TokenIds([1, 2, 2**31 - 1])
    raw = tokens.tobytes()
    back = TokenIds.frombytes(raw)
    assert back == tokens
    assert hash(back) == hash(tokens)
    assert np.shares_memory(back.array, np.frombuffer(raw, "<i4"))


def test_a_buffer_that_ends_within_a_value_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"item 3: 5 bytes"):
        TokenIds.frombytes(b"12345", where="item 3")


def test_vectors_are_sliced_joined_and_compared_like_tuples() -> None:
    tokens = TokenIds([1, 2, 3])
    assert (tokens[1:], tokens[-1], len(tokens), list(tokens)) == (TokenIds([2, 3]), 3, 3, [1, 2, 3])
    assert tokens + TokenIds([4]) == TokenIds.joined([TokenIds([1]), TokenIds([2, 3, 4])])
    assert TokenIds() == TokenIds.joined([])
    assert TokenIds([1]) != LogProbs([1.0])
    assert LogProbs([float("nan")]) == LogProbs([float("nan")])


def test_nobody_writes_into_a_vector() -> None:
    with pytest.raises(ValueError, match="read-only"):
        TokenIds([1]).array[0] = 2


def test_what_is_no_token_id_is_refused() -> None:
    with pytest.raises(OverflowError):
        TokenIds([2**31])
