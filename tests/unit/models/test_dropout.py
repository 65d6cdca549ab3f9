"""Dropout: rate, mean, gradient, seed, and evaluation."""

from __future__ import annotations

import pytest
import torch

from app.models.dropout import Dropout, dropout


@pytest.mark.parametrize("rate", [0.001, 0.2, 0.5, 0.9])
def test_numbers_fall_at_the_rate_and_the_mean_stays(rate: float) -> None:
    torch.manual_seed(0)
    dropped = dropout(torch.ones(400, 2501), rate, True)
    share = float((dropped == 0).float().mean())
    deviation = (rate * (1 - rate) / dropped.numel()) ** 0.5
    assert abs(share - rate) < 5 * deviation + 1 / 65536
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - rate)], rel=1e-3)
    # Each of the numbers that one draw decides for, and of those of a row, falls alike and by itself.
    flat = (dropped == 0).float().flatten()[: 4 * 250_000].view(-1, 4)
    assert (flat.mean(0) - rate).abs().max() < 10 * deviation + 1 / 65536
    covariance = torch.cov(flat.T)
    assert (covariance - torch.diag(covariance.diag())).abs().max() < 5e-3 * rate * (1 - rate) + 1e-6


def test_the_gradient_is_that_of_what_was_kept() -> None:
    values = torch.randn(7, 3, requires_grad=True)
    dropped = Dropout(0.5)(values)
    dropped.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad * values, dropped)


def test_the_seed_decides_and_another_call_differs() -> None:
    values = torch.ones(1000)
    torch.manual_seed(3)
    first, second = dropout(values, 0.5, True), dropout(values, 0.5, True)
    torch.manual_seed(3)
    assert torch.equal(dropout(values, 0.5, True), first) and not torch.equal(first, second)


@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 1)])
def test_any_shape_and_precision(shape: tuple[int, ...]) -> None:
    for kind in (torch.float32, torch.bfloat16):
        dropped = dropout(torch.ones(shape, dtype=kind), 0.25, True)
        assert (dropped.shape, dropped.dtype) == (shape, kind)
    transposed = torch.ones(4, 6).T
    assert dropout(transposed, 0.5, True).shape == (6, 4)


def test_evaluation_and_a_rate_of_0_leave_values_alone() -> None:
    values, layer = torch.randn(10), Dropout(0.5).eval()
    assert layer(values) is values and Dropout(0.0)(values) is values
