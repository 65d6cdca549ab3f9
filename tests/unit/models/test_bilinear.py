"""The worked example of the bilinear model, by hand, and what its options do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.errors import RecipeError
from app.models.base import Batch, Content, History, Inputs
from app.models.bilinear import Bilinear, BilinearConfig
from app.models.build import tables_of

W = [[0.2, 0.3, 0.1], [0.1, 0.2, 0.4], [0.3, 0.1, 0.2]]
ITEMS = [[0.0, 0.0, 0.0], [0.5, 0.3, 0.1], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]  # row 0 unknown


def worked(**options: object) -> Bilinear:
    content = Content(
        item_dense=torch.tensor(ITEMS),
        item_category=torch.zeros(4, 0, dtype=torch.int64),
        user_dense=torch.zeros(3, 0),
        user_category=torch.zeros(3, 0, dtype=torch.int64),
        log_popularity=torch.tensor([-9.0, -1.0, -2.0, -3.0]),
        user_trained=torch.ones(3, dtype=torch.bool),
        item_trained=torch.ones(4, dtype=torch.bool),
    )
    config = BilinearConfig.model_validate({"prior": False, **options})
    inputs = Inputs(users=3, items=4, events=2, history=2, context=0, item_dense=3)
    model = Bilinear(config, inputs, content, tables_of(config))
    with torch.no_grad():
        model.affinity.copy_(torch.tensor(W))
        model.bias.embedding.weight.copy_(torch.tensor([[0.0], [0.0], [1.5]]))
    return model


def ask(model: Bilinear, user: int, history: list[int], ages: list[float] | None = None) -> Tensor:
    events = History(
        torch.tensor([history]),
        torch.tensor([[int(item > 0) for item in history]]),
        torch.tensor([ages or [0.0] * len(history)]),
        torch.zeros(1, len(history)),
    )
    request = Batch(torch.tensor([user]), torch.tensor([[1]]), events, torch.zeros(1, 0), torch.zeros(1, 1))
    logits: Tensor = model(request).detach()
    return logits[0, 0]


def test_behaviour_times_w_times_item() -> None:
    # b = (0, 1, 0): the middle row of W times (.5, .3, .1) = .05 + .06 + .04.
    assert ask(worked(), 1, [0, 2]) == pytest.approx(0.15)


def test_the_bias_of_the_user_is_added() -> None:
    assert ask(worked(), 2, [0, 2]) == pytest.approx(0.15 + 1.5)


def test_behaviour_is_the_mean_of_the_history() -> None:
    # b = (.5, .5, 0): half of .15 and half of .1 + .09 + .01.
    assert ask(worked(), 1, [3, 2]) == pytest.approx((0.15 + 0.2) / 2)


def test_an_event_of_one_half_life_counts_half() -> None:
    day = torch.log1p(torch.tensor(24.0)).item()
    logit = ask(worked(half_life_days=1.0), 1, [3, 2], [day, 0.0])
    assert logit == pytest.approx((0.2 * 0.5 + 0.15) / 1.5, rel=1e-5)


@pytest.mark.parametrize("days", [20.0, 500.0])
def test_behaviour_is_a_mean_however_long_ago_it_was(days: float) -> None:
    age = torch.log1p(torch.tensor(24.0 * days)).item()
    assert ask(worked(half_life_days=1.0), 1, [0, 2], [0.0, age]) == pytest.approx(0.15, rel=1e-5)


def test_no_history_leaves_the_bias() -> None:
    assert ask(worked(), 2, [0, 0]) == pytest.approx(1.5)


def test_the_constant_ranks_for_a_user_without_history() -> None:
    model = worked(prior=True)
    with torch.no_grad():
        model.constant.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))  # type: ignore[union-attr]
    assert ask(model, 1, [0, 0]) == pytest.approx(-1.0)  # log popularity of item 1


def test_needs_content() -> None:
    content = Content(*(torch.zeros(2, 0) for _ in range(4)), *(torch.zeros(2) for _ in range(3)))
    config = BilinearConfig()
    with pytest.raises(RecipeError, match=r"features\.item"):
        Bilinear(config, Inputs(2, 2, 2, 2, 0), content, tables_of(config))
