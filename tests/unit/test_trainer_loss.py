"""The objective of paper.md section 5: its gradient and its masks."""

from __future__ import annotations

import pytest
import torch

from twinpod.errors import InputError
from twinpod.testing.batches import rank_batches, sample
from twinpod.trainer.loss import check_mask, policy_loss, weights_gap
from twinpod.trainer.packing import DataLoader

TAU = 0.3


def _inputs(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask_BL = (torch.rand(4, 7, generator=generator) > 0.4).double()
    return {
        "logps_BL": -torch.rand(4, 7, generator=generator, dtype=torch.float64) * 3,
        "reference_BL": -torch.rand(4, 7, generator=generator, dtype=torch.float64) * 3,
        "mask_BL": mask_BL,
        "advantage_B": torch.randn(4, generator=generator, dtype=torch.float64),
        "weight_B": torch.tensor([0.25, 0.25, 0.125, 0.125], dtype=torch.float64),
    }


def test_gradient_is_that_of_finite_differences() -> None:
    inputs = _inputs()
    logps_BL = inputs["logps_BL"].clone().requires_grad_()
    policy_loss(**{**inputs, "logps_BL": logps_BL}, tau=TAU).loss.backward()
    assert logps_BL.grad is not None
    step = 1e-6
    for row in range(4):
        for column in range(7):
            ends = []
            for sign in (1, -1):
                moved = inputs["logps_BL"].clone()
                moved[row, column] += sign * step
                ends.append(float(policy_loss(**{**inputs, "logps_BL": moved}, tau=TAU).loss))
            assert float(logps_BL.grad[row, column]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8)


def test_gradient_is_the_papers_ascent_direction() -> None:
    """(1/k) sum_j [grad logp_j (r_j - r_mean) - (tau/2) grad d_j^2], written out by hand for one group."""
    inputs = _inputs(1)
    logps_BL = inputs["logps_BL"].clone().requires_grad_()
    policy_loss(**{**inputs, "logps_BL": logps_BL}, tau=TAU).loss.backward()
    d_B = ((inputs["logps_BL"] - inputs["reference_BL"]) * inputs["mask_BL"]).sum(-1)
    ascent_BL = (inputs["weight_B"] * (inputs["advantage_B"] - TAU * d_B))[:, None] * inputs["mask_BL"]
    torch.testing.assert_close(logps_BL.grad, -ascent_BL)


def test_square_is_of_the_sequence_not_of_tokens() -> None:
    """Log-ratios +1 and -1 of two tokens cancel: no penalty."""
    one_B = torch.ones(1)
    parts = policy_loss(torch.tensor([[1.0, -1.0]]), torch.zeros(1, 2), torch.ones(1, 2), 0 * one_B, one_B, tau=1.0)
    assert float(parts.loss) == 0.0
    assert parts.log_ratio_B.tolist() == [0.0]


def _loader(mask: str) -> DataLoader:
    """One sample whose first two response tokens were made by version 3, the last by the current version 4."""
    one = sample(0, 0, (5, 6), (7, 8, 9), (-1.0, -2.0, -3.0), (3, 3, 4), advantage=1.5, reward=1.0)
    (batch,) = rank_batches([one], iteration=9, version=4, group_size=1)
    return DataLoader(batch, mask, 1000)


@pytest.mark.parametrize(
    ("mask", "in_loss", "log_ratio"),
    [("all", [0, 1, 1, 1], 0.1 + 0.2 + 0.4), ("current", [0, 0, 0, 1], 0.4)],
)
def test_mask_modes_choose_the_tokens_of_logp_and_d_alike(mask: str, in_loss: list[int], log_ratio: float) -> None:
    (micro,) = _loader(mask).all()
    assert micro.mask_BL.tolist() == [in_loss]
    logps_BL = torch.tensor([[-9.0, -1.0, -2.0, -3.0]], requires_grad=True)
    reference_BL = logps_BL.detach() - torch.tensor([[5.0, 0.1, 0.2, 0.4]])
    parts = policy_loss(
        logps_BL,
        reference_BL,
        torch.from_numpy(micro.mask_BL),
        torch.from_numpy(micro.advantage_B),
        torch.from_numpy(micro.weight_B),
        TAU,
    )
    parts.loss.backward()
    assert float(parts.log_ratio_B) == pytest.approx(log_ratio, abs=1e-6)
    expected = [bit * (-1.5 + TAU * log_ratio) for bit in in_loss]
    assert logps_BL.grad is not None
    assert logps_BL.grad[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_unknown_mask_is_refused() -> None:
    with pytest.raises(InputError, match="use one of all, current"):
        check_mask("some")


def test_weights_gap_looks_at_on_policy_tokens_only() -> None:
    gap, tokens = weights_gap(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.25, 50.0]]), torch.tensor([[1.0, 0.0]]))
    assert (gap, tokens) == (0.25, 1)
