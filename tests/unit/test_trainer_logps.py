"""Log-probs in chunks against the whole way, written with torch's own log_softmax."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from twinpod.trainer.logps import OutputLayer, TokenLogps, token_logps

L, B, H, VOCAB, PADDED = 7, 3, 5, 11, 13


def _inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weights whose padding rows would win if they counted, targets, and which are wanted."""
    generator = torch.Generator().manual_seed(seed)
    hidden_LBH = torch.randn(L, B, H, generator=generator).requires_grad_()
    weight_WH = torch.randn(PADDED, H, generator=generator)
    weight_WH[VOCAB:] = 100.0
    targets_BL = torch.randint(VOCAB, (B, L), generator=generator)
    wanted_BL = torch.rand(B, L, generator=generator) > 0.4
    return hidden_LBH, weight_WH.requires_grad_(), targets_BL, wanted_BL


def _chunked(inputs: tuple[Tensor, Tensor, Tensor, Tensor], positions: int, temperature: float = 0.7) -> TokenLogps:
    hidden_LBH, weight_WH, targets_BL, wanted_BL = inputs
    return token_logps(
        hidden_LBH,
        OutputLayer(weight_WH=weight_WH, first=0, rows=VOCAB, group=None),
        targets_BL,
        wanted_BL,
        temperature=temperature,
        entropy=True,
        chunk_bytes=positions * VOCAB * 4,
    )


def _whole(inputs: tuple[Tensor, Tensor, Tensor, Tensor], temperature: float = 0.7) -> TokenLogps:
    hidden_LBH, weight_WH, targets_BL, wanted_BL = inputs
    logps_BLV = torch.log_softmax((hidden_LBH @ weight_WH[:VOCAB].t()).transpose(0, 1) / temperature, dim=-1)
    return TokenLogps(
        logps_BL=logps_BLV.gather(2, targets_BL[..., None])[..., 0] * wanted_BL,
        entropy_BL=-(logps_BLV.exp() * logps_BLV).sum(dim=-1).detach() * wanted_BL,
    )


def _gradients(found: TokenLogps, inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    ascending = torch.arange(B * L, dtype=torch.float32).view(B, L)  # each token pulls with a weight of its own
    return torch.autograd.grad((found.logps_BL * ascending).sum(), inputs[:2])


@given(st.integers(1, B * L + 1), st.integers(0, 20), st.sampled_from([1.0, 0.7, 1.3]))
def test_chunks_of_any_size_are_the_whole(positions: int, seed: int, temperature: float) -> None:
    inputs = _inputs(seed)
    chunked, whole = _chunked(inputs, positions, temperature), _whole(inputs, temperature)
    torch.testing.assert_close(chunked.logps_BL, whole.logps_BL, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(chunked.entropy_BL, whole.entropy_BL, atol=1e-5, rtol=1e-5)
    for one, other in zip(_gradients(chunked, inputs), _gradients(whole, inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_padding_of_the_vocabulary_has_no_probability_and_no_gradient() -> None:
    inputs = _inputs()
    found = _chunked(inputs, 4)
    assert float(found.logps_BL.detach()[inputs[3]].exp().max()) > 1e-3
    assert torch.count_nonzero(_gradients(found, inputs)[1][VOCAB:]) == 0


def test_entropy_carries_no_gradient_and_is_left_out_unless_asked_for() -> None:
    inputs = _inputs()
    entropy_BL = _chunked(inputs, 4).entropy_BL
    assert entropy_BL is not None
    assert not entropy_BL.requires_grad
    assert 0.0 < float(entropy_BL.max()) <= math.log(VOCAB)
    layer = OutputLayer(weight_WH=inputs[1], first=0, rows=VOCAB, group=None)
    assert token_logps(inputs[0], layer, inputs[2], inputs[3], temperature=1.0).entropy_BL is None


def test_a_blank_micro_batch_still_has_a_way_back() -> None:
    """Every pipeline stage waits for a gradient, also of a micro-batch that only fills the schedule up."""
    hidden_LBH, weight_WH, targets_BL, wanted_BL = _inputs()
    inputs = (hidden_LBH, weight_WH, targets_BL, torch.zeros_like(wanted_BL))
    assert [int(torch.count_nonzero(g)) for g in _gradients(_chunked(inputs, 4), inputs)] == [0, 0]


def test_gradients_of_bfloat16_chunks_are_summed_in_float32() -> None:
    """In bfloat16 a sum of 1,024 ones stops at 256."""
    count = 1024
    weight_WH = torch.zeros(VOCAB, H, dtype=torch.bfloat16).requires_grad_()
    layer = OutputLayer(weight_WH=weight_WH, first=0, rows=VOCAB, group=None)
    ones_LBH = torch.ones(count, 1, H, dtype=torch.bfloat16)
    targets_BL, wanted_BL = torch.zeros(1, count, dtype=torch.int64), torch.ones(1, count, dtype=torch.bool)
    token_logps(ones_LBH, layer, targets_BL, wanted_BL, temperature=1.0, chunk_bytes=1).logps_BL.sum().backward()
    assert weight_WH.grad is not None
    assert float(weight_WH.grad[0, 0]) == pytest.approx(count * (1 - 1 / VOCAB), rel=0.01)


def test_a_sum_that_megatron_keeps_is_added_to() -> None:
    hidden_LBH, weight_WH, targets_BL, wanted_BL = inputs = _inputs()
    main_grad_WH = torch.ones(PADDED, H)
    layer = OutputLayer(weight_WH=weight_WH, first=0, rows=VOCAB, group=None, main_grad_WH=main_grad_WH)
    found = token_logps(hidden_LBH, layer, targets_BL, wanted_BL, temperature=0.7, chunk_bytes=88)
    found.logps_BL.sum().backward()
    expected = torch.autograd.grad(_whole(inputs).logps_BL.sum(), weight_WH)[0]
    assert weight_WH.grad is None
    torch.testing.assert_close(main_grad_WH - 1.0, expected, atol=1e-5, rtol=1e-5)


def test_a_nan_is_not_hidden() -> None:
    hidden_LBH, weight_WH, targets_BL, wanted_BL = _inputs()
    with torch.no_grad():
        weight_WH[2, 1] = math.nan
    found = _chunked((hidden_LBH, weight_WH, targets_BL, wanted_BL), 4)
    assert not torch.isfinite(found.logps_BL[wanted_BL]).any()
