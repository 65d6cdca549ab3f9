"""Settings that fit a log where the recipe leaves them to us, and the models that are worth comparing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.data.dataset import Dataset
from app.models.discovery import model_class
from app.models.ease import MOST_ITEMS
from app.recipe import Recipe
from app.recipe_check import AUTO

STEPS = 200  # of an epoch, about: fewer are too few for an optimiser, more gain nothing
SMALLEST, LARGEST = 64, 4096  # batch sizes
FEWEST_USERS = 250  # that a validation ranks: fewer tell nothing


@dataclass(frozen=True)
class Candidate:
    """A model that is worth trying on a log, and overrides of the recipe for it."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


def settled(recipe: Recipe) -> Recipe:
    """The recipe with the keys of [train] that suit its model (`Model.TRAINING`) and that it does not set.

    Every checkpoint is made, named and reported by this recipe. Of model.name = "auto" no model is known yet.
    """
    if recipe.model.source == AUTO:
        return recipe
    own = recipe.train.model_fields_set
    suits = model_class(recipe.model.source).TRAINING
    changes = {f"train.{key}": value for key, value in suits.items() if key not in own}
    return recipe.override(changes) if changes else recipe


def fitting_batch_size(rows: int) -> int:
    """The power of two that makes an epoch of so many training rows about STEPS steps."""
    size = SMALLEST
    while size < LARGEST and rows > size * STEPS:
        size *= 2
    return size


def validation_users(most: int, share: float, trained_s: float, user_s: float) -> int:
    """Users that the validation after an epoch ranks: what takes `share` of the time that the epoch trains.

    Args:
        most: users at most.
        share: time of a validation over that of an epoch.
        trained_s: seconds of an epoch.
        user_s: seconds that ranking a user takes.
    """
    affordable = int(share * trained_s / user_s)
    return max(min(most, FEWEST_USERS), min(most, affordable))


def epoch_hints(recipe: Recipe, figures: Mapping[str, Any]) -> list[str]:
    """What the best epoch of a training says of its settings: nothing where it lies well within.

    Args:
        recipe: that it was trained by.
        figures: of the checkpoint.
    """
    epochs, best = figures.get("epochs", 0), figures.get("best_epoch", 0)
    if epochs > 1 and best == epochs:
        more = 2 * max(recipe.train.epochs, epochs)
        return [f"the last of {epochs} epochs was the best: more may help (--set train.epochs={more})"]
    if epochs > 1 and best == 1:
        rate = recipe.train.learning_rate / 3
        return [
            f"the first of {epochs} epochs was the best: a lower learning rate may help"
            f" (--set train.learning_rate={rate:.2g}), or more dropout"
        ]
    return []


def candidates(dataset: Dataset) -> list[Candidate]:
    """The models to compare on a data set, those that are fitted within a second or two first.

    Of those that learn, the ones that have been the best most often come first: where time is short the last
    ones are left out, and the time that the first ones leave goes to the others.
    """
    schema = dataset.schema
    closed = ["popularity", "item_knn"]
    if schema.ordered:
        closed.append("item_sequence")
    if schema.items - 1 <= MOST_ITEMS:
        closed.append("ease")
    rates = {"train.learning_rate": 0.01, "train.table_learning_rate": 0.2}
    learned = [Candidate("two_tower", rates)]
    learned.append(Candidate("mlp", {**rates, "model.loss": "cross_entropy", "model.similarity": True}))
    learned.append(Candidate("ials"))  # in closed form, and not as quick
    learned.append(Candidate("sasrec" if schema.ordered else "mult_vae"))
    if schema.item_dense or schema.item_categories:
        learned.append(Candidate("fusion"))
    if schema.item_dense or schema.item_categories or schema.user_dense or schema.user_categories:
        learned.append(Candidate("dcn"))
    return [*(Candidate(name) for name in closed), *learned]
