"""Rules about the evaluation: which figures there are, and what candidates and labels need."""

from __future__ import annotations

from collections.abc import Iterator

from app.errors import RecipeError
from app.recipe import Recipe
from app.recipe_check.unknown import unknown

FIGURES = ("recall", "precision", "hit_rate", "ndcg", "mrr", "map")  # each with @k
LABEL_FIGURES = ("auc", "gauc", "information_gain")  # of logged labels, more is better
LABELLED_SPLITS = ("random", "kfold", "time")


def mistakes_of(recipe: Recipe) -> Iterator[RecipeError]:
    """Mistakes in train.metric and [evaluate]."""
    yield from _metric(recipe)
    yield from _listed(recipe)
    yield from _logged(recipe)


def _metric(recipe: Recipe) -> Iterator[RecipeError]:
    if recipe.evaluate.candidates == "logged":
        if recipe.train.metric not in LABEL_FIGURES:
            by_loss = "; information_gain orders models as the log loss does, and more is better"
            yield unknown("figure", recipe.train.metric, "train.metric", list(LABEL_FIGURES), by_loss)
        return
    name, _, k = recipe.train.metric.partition("@")
    if recipe.train.metric == "auc" or (name in FIGURES and k.isdecimal() and int(k) > 0):
        return
    known = [*(f"{figure}@{k}" for figure in FIGURES for k in recipe.evaluate.k), "auc"]
    yield unknown("figure", recipe.train.metric, "train.metric", known, ", with any k")


def _listed(recipe: Recipe) -> Iterator[RecipeError]:
    if recipe.evaluate.candidates == "listed" and not (
        recipe.split.method == "given" and recipe.split.negatives
    ):
        yield RecipeError(
            'candidates = "listed", and no test file lists any',
            where="evaluate.candidates",
            remedy='set it to "all", or split.method to "given" and split.negatives to the column of lists',
        )


def _logged(recipe: Recipe) -> Iterator[RecipeError]:
    """What has no labels of both kinds to evaluate by."""
    if recipe.evaluate.candidates != "logged":
        return
    data, split = recipe.data, recipe.split
    if not data.positive and data.positive_above is None:
        yield RecipeError(
            '"logged", and every event is to be predicted, so that all labels are 1',
            where="evaluate.candidates",
            remedy="set data.positive to the event types that count as 1, or data.positive_above to a value",
        )
    method = split.settled(data.ordered).method
    if method not in LABELLED_SPLITS and not (method == "given" and not split.valid):
        yield RecipeError(
            f'"logged", and split.method = {method!r} holds out events by their label',
            where="evaluate.candidates",
            remedy=f"choose split.method among {', '.join(LABELLED_SPLITS)}, or given with split.valid = 0",
        )
