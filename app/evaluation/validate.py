"""Figures on the validation part, after each epoch and in a search, and the protocol that parts share."""

from __future__ import annotations

from app.data.dataset import Dataset
from app.errors import RecipeError
from app.evaluation import metrics
from app.evaluation.logged.evaluate import LOGGED, validated_logged
from app.evaluation.measure import Measurement, measure
from app.evaluation.ranking import Protocol, rank
from app.evaluation.requests import requests_of
from app.evaluation.scorer import Scorer
from app.recipe import Recipe

NEGATIVES = 99  # sampled for validation where the test part lists its own, as He 2017 lists
Figures = dict[str, float]


def validate(recipe: Recipe, dataset: Dataset, scorer: Scorer, max_users: int, seed: int) -> Figures:
    """The figures of `validated`; empty where the valid part has nothing to predict."""
    measured = validated(recipe, dataset, scorer, max_users, seed)
    return measured.figures if measured else {}


def validated(
    recipe: Recipe, dataset: Dataset, scorer: Scorer, max_users: int, seed: int
) -> Measurement | None:
    """Ranking figures, or those of logged labels, on at most `max_users` users of the valid part.

    They are drawn with `seed`: two models that are measured with the same arguments are measured on the
    same requests, and so can be compared by `app.evaluation.compare.paired`.

    Returns:
        AT_K metrics at the cut-offs of `cutoffs`, and "auc"; None where the part has nothing to predict. Of
        logged labels the figures of `MeasuredLabels`.
    """
    if recipe.evaluate.candidates == LOGGED:
        return validated_logged(recipe, dataset, scorer, max_users, seed)
    requests = requests_of(dataset, "valid").sample(max_users, seed)
    if not len(requests):
        return None
    ranked = rank(dataset, requests, scorer, protocol_of(recipe, dataset, "valid"))
    return measure(dataset, ranked, cutoffs(recipe), seed)


def cutoffs(recipe: Recipe) -> list[int]:
    """The k of [evaluate] and of `train.metric`.

    Raises:
        RecipeError: `train.metric` is no figure that `validate` gives.
    """
    name, _, k = recipe.train.metric.partition("@")
    if recipe.train.metric == "auc":
        return sorted(set(recipe.evaluate.k))
    if name not in metrics.AT_K or not k.isdecimal() or int(k) < 1:
        raise RecipeError(
            f"unknown metric {recipe.train.metric!r}",
            where="train.metric",
            remedy=f"choose auc or one of {', '.join(metrics.AT_K)} with a cut-off, e.g. ndcg@10",
        )
    return sorted({*recipe.evaluate.k, int(k)})


def protocol_of(recipe: Recipe, dataset: Dataset, part: str) -> Protocol:
    """What requests of a part are ranked against.

    Where the test part lists its negatives, validation draws as many that the user has not
    met, so that its figures are of the kind that the test reports.
    """
    kind, negatives = recipe.evaluate.candidates, getattr(dataset, part).negatives
    assert kind != "logged", "logged labels are not ranked"
    if kind == "all" or negatives is not None:
        return Protocol(kind, recipe.evaluate.exclude_seen, seed=recipe.seed)
    if part == "test":
        raise RecipeError(
            'evaluate.candidates = "listed" and the test part lists no negatives',
            where="evaluate.candidates",
            remedy='name their column in split.negatives, or set it to "all"',
        )
    listed = dataset.test.negatives
    count = NEGATIVES if listed is None else listed.shape[1]
    return Protocol("sampled", negatives=count, seed=recipe.seed)
