"""Objectives against hand-worked values, and the pooled history."""

from __future__ import annotations

import io
import math

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from app.models import losses
from app.models.base import History
from app.models.parts import HistoryPool, HistorySimilarity, category_width


def test_bce_of_no_opinion_is_log_two() -> None:
    torch.testing.assert_close(losses.bce(torch.zeros(2, 3), torch.eye(2, 3)), torch.tensor(math.log(2)))


def test_mse() -> None:
    value = losses.mse(torch.tensor([[1.0], [4.0]]), torch.tensor([[3.0], [4.0]]))
    assert value.item() == 2.0


def test_cross_entropy_weighs_by_label() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    label = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    expected = (math.log(4 / 3) + math.log(2)) / 2
    torch.testing.assert_close(losses.cross_entropy(logits, label), torch.tensor(expected))


def test_bpr_compares_with_each_negative() -> None:
    value = losses.bpr(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
    expected = (math.log(2) + math.log1p(math.exp(-1))) / 2
    torch.testing.assert_close(value, torch.tensor(expected))


def test_in_batch_softmax_corrects_for_popularity() -> None:
    """An item drawn three times as often must score log 3 more to be even."""
    log_q = torch.tensor([0.0, math.log(0.75), math.log(0.25)])
    even = torch.tensor([[math.log(0.75), math.log(0.25)]] * 2)
    value = losses.in_batch_softmax(even, torch.tensor([1, 2]), log_q)
    torch.testing.assert_close(value, torch.tensor(math.log(2)))


def test_in_batch_softmax_has_no_negative_of_the_same_item() -> None:
    items, log_q = torch.tensor([1, 1]), torch.zeros(2)
    value = losses.in_batch_softmax(torch.randn(2, 2), items, log_q)
    torch.testing.assert_close(value, torch.tensor(0.0))


def test_a_pooled_history_is_a_weighted_mean() -> None:
    pool = HistoryPool(length=3, events=2, heads=2)
    rows = torch.randn(4, 3, 5)
    item = torch.tensor([[0, 0, 0], [0, 0, 7], [0, 8, 9], [1, 2, 3]])
    pooled = pool(rows, History(item, (item > 0).long(), *torch.zeros(2, 4, 3))).view(4, 2, 5)
    torch.testing.assert_close(pooled[0], torch.zeros(2, 5))
    torch.testing.assert_close(pooled[1], rows[1, 2:].expand(2, 5))
    torch.testing.assert_close(pooled[3, 0], rows[3].mean(0))  # head 0 begins without preference
    low, high = rows[2, 1:].amin(0), rows[2, 1:].amax(0)
    assert (pooled[2] >= low - 1e-6).all() and (pooled[2] <= high + 1e-6).all()


def old_events(length: int, days: int) -> tuple[HistoryPool, History]:
    """A pool that weighs age with 2, and histories of 0 to `length` events of `days` ago."""
    pool = HistoryPool(length, events=2, heads=2)
    with torch.no_grad():
        pool.age.fill_(2.0)
        pool.position.zero_()
    real = torch.arange(length, 0, -1)[None] <= torch.arange(length + 1)[:, None]
    item = real.long() * torch.arange(1, length + 1)
    age = torch.full(item.shape, math.log1p(24.0 * days)) * real
    return pool, History(item, real.long(), age, torch.zeros_like(age))


@pytest.mark.parametrize("days", [1, 30, 3650])
def test_events_that_are_old_weigh_1_together_as_new_ones_do(days: int) -> None:
    pool, history = old_events(4, days)
    pooled = pool(torch.ones(5, 4, 3), history)
    torch.testing.assert_close(pooled[0], torch.zeros(6))
    torch.testing.assert_close(pooled[1:], torch.ones(4, 6))


@given(st.integers(0, 6), st.floats(-30, 30), st.floats(-30, 30), st.floats(0, 14))
def test_padding_never_changes_a_pooled_history(
    events: int, weight_of_age: float, position: float, oldest: float
) -> None:
    """The pool of a padded history is the softmax over its real events, computed without padding."""
    pool = HistoryPool(6, events=3, heads=1)
    with torch.no_grad():
        pool.age.fill_(weight_of_age)
        pool.position.copy_(torch.linspace(position, 0, 6)[None])
        pool.event.copy_(torch.tensor([[50.0], [1.0], [-1.0]]))
    rows, kinds = torch.randn(1, 6, 2), torch.tensor([[1, 2, 1, 2, 1, 2]])
    age = torch.linspace(oldest, 0, 6)[None]
    real = torch.arange(6, 0, -1)[None] <= events
    pooled = pool(rows, History(real.long(), kinds * real, age * real, torch.zeros_like(age)))
    logits = pool.position[0] + pool.event[kinds[0], 0] - weight_of_age * age[0]
    weights = logits[6 - events :].double().softmax(0).float()
    torch.testing.assert_close(pooled[0], weights @ rows[0, 6 - events :], atol=2e-4, rtol=1e-4)


class _Pooled(nn.Module):
    def __init__(self, pool: HistoryPool) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, rows: Tensor, item: Tensor, event: Tensor, age: Tensor) -> Tensor:
        pooled: Tensor = self.pool(rows, History(item, event, age, torch.zeros_like(age)))
        return pooled


def test_a_pooled_history_is_the_same_in_onnx() -> None:
    pool, history = old_events(4, 3650)
    inputs, buffer = (torch.randn(5, 4, 3), history.item, history.event, history.age), io.BytesIO()
    names = ["rows", "item", "event", "age"]
    torch.onnx.export(_Pooled(pool), inputs, buffer, input_names=names, opset_version=18, dynamo=False)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    pooled = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})[0]
    np.testing.assert_allclose(pooled, pool(inputs[0], history).detach().numpy(), atol=1e-5)
    assert not pooled[0].any()


def test_a_candidate_near_to_old_events_alone_is_still_near() -> None:
    """log(1 + 2 exp(-2 age)) where both events have the candidate's direction; padding adds nothing."""
    near = HistorySimilarity(length=5, events=2, width=3)
    with torch.no_grad():
        near.age.fill_(2.0)
    item = torch.tensor([[0, 0, 0, 1, 2], [0, 0, 0, 0, 0]])
    history = History(item, (item > 0).long(), (item > 0) * 1.5, torch.zeros(item.shape))
    rows = torch.ones(2, 5, 3) * (item > 0).unsqueeze(-1)
    score = near(near.state(rows, history), near.item(torch.ones(2, 1, 3)))
    expected = torch.tensor([[math.log1p(2 * math.exp(-3.0))], [0.0]])
    torch.testing.assert_close(score, expected)


@given(st.integers(1, 10**6))
def test_category_width_is_small(rows: int) -> None:
    assert 2 <= category_width(rows) <= 16
