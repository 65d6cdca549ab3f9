"""What `model.loss` makes of a batch, against hand-worked values, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from app.data.dataset import Dataset
from app.errors import RecipeError
from app.models.base import Batch, Content, History, Inputs, Model, ModelConfig, Sequences
from app.models.build import build_model
from app.recipe import parse
from app.training.batches import batches_of
from app.training.optimizers import Optimizers
from tests.tiny import tiny_dataset

LOG = [0.0, 0.0, math.log(2), math.log(3), math.log(4), 0.0]  # logits of the items 0 to 5


class Known(Model):
    """Scores every item by LOG, for everyone."""

    retrieves = unit_rows = True
    untrained: tuple[int, ...] = ()

    def __init__(self, config: ModelConfig, trains_on: str = "sequences") -> None:
        sizes, ids = torch.zeros(6, 0), torch.ones(6, dtype=torch.bool)
        ids[[0, *self.untrained]] = False
        popularity = torch.tensor([0.0, 0.4, 0.3, 0.1, 0.1, 0.1]).log()
        inputs = Inputs(users=6, items=6, events=2, history=2, context=0)
        content = Content(sizes, sizes.long(), sizes, sizes.long(), popularity, ids, ids)
        super().__init__(config, inputs, content, None)  # type: ignore[arg-type]
        self.logits = torch.nn.Parameter(torch.tensor(LOG))

    def item_rows(self, items: Tensor) -> Tensor:
        return self.logits[items].unsqueeze(-1)

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        return torch.ones(len(user_rows), 1)


class Directions(Known):
    """Vectors of two floats at angles: item 1 is at 60 degrees from every state, 2 at 0 and 3 at 90."""

    def item_rows(self, items: Tensor) -> Tensor:
        angle = torch.tensor([0.0, math.pi / 3, 0.0, math.pi / 2, 0.0, 0.0])[items]
        return torch.stack([angle.cos(), angle.sin()], -1) * 5

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        return torch.tensor([[2.0, 0.0]]).expand(len(user_rows), 2)


def history(users: int) -> History:
    ids = torch.zeros((users, 2), dtype=torch.int64)
    return History(ids, ids, torch.zeros(users, 2), torch.zeros(users, 2))


def sets(
    target: list[int], negatives: list[int], q: float = 0.5, weight: list[float] | None = None
) -> Sequences:
    """The first target is the first user's, all others are the second's."""
    owner = torch.tensor([0, *[1] * (len(target) - 1)])
    return Sequences(
        user=torch.zeros(2, dtype=torch.int64),
        history=history(2),
        owner=owner,
        target=torch.tensor(target),
        weight=torch.tensor(weight or [1.0] * len(target)),
        negatives=torch.tensor(negatives),
        log_q=torch.full((len(negatives),), math.log(q)),
    )


def events(items: list[list[int]]) -> Batch:
    label = torch.zeros(len(items), len(items[0]))
    label[:, 0] = 1
    return Batch(
        torch.zeros(len(items), dtype=torch.int64),
        torch.tensor(items),
        history(len(items)),
        torch.zeros(len(items), 0),
        label,
    )


def loss_of(batch: Batch | Sequences, kind: type[Known] = Known, **config: Any) -> float:
    class Trained(kind):  # type: ignore[misc, valid-type]
        trains_on = "sets" if isinstance(batch, Sequences) else "events"

    loss: Tensor = Trained(ModelConfig(**config)).loss(batch)
    loss.backward() if loss.requires_grad else None  # type: ignore[no-untyped-call]
    return loss.item()


def test_softmax_is_over_all_items_but_the_unknown() -> None:
    """exp of the logits: 1, 2, 3, 4, 1, together 11."""
    batch = sets([2, 4], [], weight=[3.0, 1.0])
    expected = (3 * math.log(11 / 2) + math.log(11 / 4)) / 4
    assert loss_of(batch, loss="softmax") == pytest.approx(expected)
    assert loss_of(events([[2], [4]]), loss="softmax") == pytest.approx(math.log(11 / 2 * 11 / 4) / 2)


def test_softmax_leaves_out_items_that_training_did_not_meet() -> None:
    """exp of the logits without item 3: 1, 2, 4, 1, together 8."""

    class Without(Known):
        untrained = (3,)

    expected = (math.log(8 / 2) + math.log(8 / 4)) / 2
    assert loss_of(sets([2, 4], []), Without, loss="softmax") == pytest.approx(expected)
    assert loss_of(events([[2], [4]]), Without, loss="softmax") == pytest.approx(expected)


def test_cross_entropy_counts_a_draw_as_the_items_that_it_stands_for() -> None:
    """Two draws with probability 1/4 are two items each; the draw of the target itself is none."""
    batch = sets([2, 4], [3, 4], q=0.25, weight=[3.0, 1.0])
    expected = (3 * math.log((2 + 2 * 3 + 2 * 4) / 2) + math.log((4 + 2 * 3) / 4)) / 4
    assert loss_of(batch, loss="cross_entropy") == pytest.approx(expected)


def test_sampled_softmax_of_sets_mixes_draws_with_the_targets_of_others() -> None:
    """One draw, with probability 1/2, and one target, item 2, of popularity .3: each is one of two draws."""
    expected = math.log((2 + 3 / (2 * 0.5)) / 2), math.log((4 + 3 / (2 * 0.5) + 2 / (2 * 0.3)) / 4)
    batch = sets([2, 4], [3], q=0.5)
    assert loss_of(batch, loss="sampled_softmax") == pytest.approx(sum(expected) / 2)


def test_bce_and_gbce() -> None:
    """Sigmoids of log 2, log 3, log 4 are 2/3, 3/4, 4/5; a draw of the target is no negative."""
    batch = sets([2, 4], [3, 4], weight=[3.0, 1.0])
    first = (-math.log(2 / 3) - math.log(1 / 4) - math.log(1 / 5)) / 3
    second = (-math.log(4 / 5) - math.log(1 / 4)) / 3
    assert loss_of(batch, loss="bce") == pytest.approx((3 * first + second) / 4)
    # Two of four negatives are sampled: beta = 1 - .5 * (1 - .5).
    first += (0.75 - 1) * -math.log(2 / 3) / 3
    second += (0.75 - 1) * -math.log(4 / 5) / 3
    assert loss_of(batch, loss="gbce", gbce_t=0.5) == pytest.approx((3 * first + second) / 4)
    assert loss_of(events([[2, 3, 4]]), loss="gbce", gbce_t=0.5) == pytest.approx(first)


def test_gbce_of_all_negatives_is_bce() -> None:
    batch = sets([2], [1, 3, 4, 5])
    assert loss_of(batch, loss="gbce") == pytest.approx(loss_of(batch, loss="bce"))


def test_bpr() -> None:
    batch = sets([2, 4], [3, 4])
    expected = (math.log(1 + 3 / 2) + math.log(1 + 4 / 2)) / 2, math.log(1 + 3 / 4) / 2
    assert loss_of(batch, loss="bpr") == pytest.approx(sum(expected) / 2)
    assert loss_of(events([[2, 3, 4]]), loss="bpr") == pytest.approx(expected[0])


def test_cosine_contrastive_compares_directions() -> None:
    """Cosines 1/2 of item 1, 1 of item 2 and 0 of item 3; the margin is .4."""
    settings = {"loss": "cosine", "cosine_margin": 0.4, "cosine_weight": 10.0}
    expected = 0.5 + 10 * (0.6 + 0) / 2
    assert loss_of(sets([1], [2, 3]), Directions, **settings) == pytest.approx(expected)
    assert loss_of(events([[1, 2, 3]]), Directions, **settings) == pytest.approx(expected)
    assert loss_of(sets([2], [2, 3]), Directions, **settings) == pytest.approx(0.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny") / "dataset")


@pytest.mark.parametrize(
    ("model", "loss", "remedy"),
    [("mlp", "softmax", "two_tower"), ("sasrec", "cosine", "two_tower"), ("sasrec", "mse", "softmax")],
)
def test_a_loss_that_does_not_suit_the_model_is_refused(
    dataset: Dataset, model: str, loss: str, remedy: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        build_model(model, {"loss": loss}, dataset)
    assert caught.value.where == "model.loss" and remedy in caught.value.remedy


@pytest.mark.parametrize("loss", ["softmax", "cross_entropy", "sampled_softmax", "gbce", "bce", "bpr"])
def test_every_loss_falls_on_a_batch_of_sequences(dataset: Dataset, loss: str) -> None:
    model = build_model("sasrec", {"loss": loss, "dropout": 0.0, "layers": 1}, dataset)
    settings = {"batch_size": 256, "learning_rate": 0.01, "table_optimizer": "same"}
    recipe = parse({"model": {"name": "sasrec", "loss": loss}, "train": settings}, "test")
    batch = next(iter(batches_of(model, dataset, recipe).epoch(0)))
    optimizers, values = Optimizers(model, recipe.train, 1), []
    for _ in range(8):
        optimizers.zero()
        value: Tensor = model.loss(batch)
        value.backward()  # type: ignore[no-untyped-call]
        optimizers.step(0)
        values.append(value.item())
    assert values[-1] < 0.99 * values[0]
