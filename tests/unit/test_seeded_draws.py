"""Draws by seed and position: of the right distribution, each of its own."""

from __future__ import annotations

import math

import pytest
import torch

from twinpod.inference.plugins import draw_by_seed


def draws(probabilities: list[float], seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    logprobs = torch.tensor([probabilities]).log().expand(len(seeds), -1)
    return draw_by_seed(lambda *_: pytest.fail("on a CPU it is ours"), logprobs, seeds, positions)[:, 0]


def test_they_follow_the_probabilities_over_seeds_and_over_positions() -> None:
    shares, count = [0.5, 0.0, 0.3, 0.2], 100_000
    some, same = torch.arange(count), torch.full((count,), 7)
    for seeds, positions in ((some, same), (same, some), (some * 131_072, some)):
        found = torch.bincount(draws(shares, seeds, positions), minlength=4) / count
        for share, seen in zip(shares, found.tolist(), strict=True):
            assert abs(seen - share) <= 5 * math.sqrt(share * (1 - share) / count)


def test_neighbours_in_seed_and_position_do_not_go_together() -> None:
    count = 100_000
    some, same = torch.arange(count), torch.full((count,), 7)
    for seeds, positions in ((some, same), (same, some)):
        found = draws([0.5, 0.5], seeds, positions).double() - 0.5
        assert abs(float((found[1:] * found[:-1]).mean()) * 4) < 5 / math.sqrt(count)


def test_what_has_no_probability_is_never_drawn_and_weights_need_not_sum_to_one() -> None:
    seeds = torch.arange(10_000)
    assert set(draws([0.0, 2.0, 0.0, 6.0, 0.0], seeds, seeds).tolist()) == {1, 3}
