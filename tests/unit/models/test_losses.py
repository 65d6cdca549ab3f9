"""Objectives against hand-worked values, and the pooled history."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from app.models import losses
from app.models.base import History
from app.models.parts import HistoryPool, category_width


def test_bce_of_no_opinion_is_log_two() -> None:
    torch.testing.assert_close(losses.bce(torch.zeros(2, 3), torch.eye(2, 3)), torch.tensor(math.log(2)))


def test_mse() -> None:
    found = losses.mse(torch.tensor([[1.0], [4.0]]), torch.tensor([[3.0], [4.0]]))
    assert found.item() == 2.0


def test_cross_entropy_weighs_by_label() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    label = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    expected = (math.log(4 / 3) + math.log(2)) / 2
    torch.testing.assert_close(losses.cross_entropy(logits, label), torch.tensor(expected))


def test_bpr_compares_with_each_negative() -> None:
    found = losses.bpr(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
    expected = (math.log(2) + math.log1p(math.exp(-1))) / 2
    torch.testing.assert_close(found, torch.tensor(expected))


def test_in_batch_softmax_corrects_for_popularity() -> None:
    """An item drawn three times as often must score log 3 more to be even."""
    log_q = torch.tensor([0.0, math.log(0.75), math.log(0.25)])
    even = torch.tensor([[math.log(0.75), math.log(0.25)]] * 2)
    found = losses.in_batch_softmax(even, torch.tensor([1, 2]), log_q)
    torch.testing.assert_close(found, torch.tensor(math.log(2)))


def test_in_batch_softmax_has_no_negative_of_the_same_item() -> None:
    items, log_q = torch.tensor([1, 1]), torch.zeros(2)
    found = losses.in_batch_softmax(torch.randn(2, 2), items, log_q)
    torch.testing.assert_close(found, torch.tensor(0.0))


def test_a_pooled_history_is_a_weighted_mean() -> None:
    pool = HistoryPool(length=3, events=2, heads=2)
    rows = torch.randn(4, 3, 5)
    item = torch.tensor([[0, 0, 0], [0, 0, 7], [0, 8, 9], [1, 2, 3]])
    found = pool(rows, History(item, (item > 0).long(), torch.zeros(4, 3))).view(4, 2, 5)
    torch.testing.assert_close(found[0], torch.zeros(2, 5))
    torch.testing.assert_close(found[1], rows[1, 2:].expand(2, 5))
    torch.testing.assert_close(found[3, 0], rows[3].mean(0))  # head 0 begins without preference
    low, high = rows[2, 1:].amin(0), rows[2, 1:].amax(0)
    assert (found[2] >= low - 1e-6).all() and (found[2] <= high + 1e-6).all()


@given(st.integers(1, 10**6))
def test_category_width_is_small(rows: int) -> None:
    assert 2 <= category_width(rows) <= 16
