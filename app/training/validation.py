"""The figures on the validation part by which training chooses its best epoch."""

from __future__ import annotations

import math
import time

import numpy as np

from app.data.dataset import Dataset
from app.errors import RecipeError
from app.evaluation.scorer import ModelScorer
from app.evaluation.validate import validate
from app.models.base import Model
from app.recipe import Recipe
from app.training.defaults import FEWEST_USERS, validation_users
from app.training.state import TrainingProgress

PROBED_USERS = 50  # ranked once, to see how long a validation takes


def validation_figures(
    recipe: Recipe, dataset: Dataset, model: Model, progress: TrainingProgress
) -> dict[str, float]:
    """The finite figures on the valid part; none where it has nothing to predict.

    The first validation after an epoch settles how many users are ranked (`progress.valid_users`), so that
    all epochs are judged by the same ones.

    Raises:
        RecipeError: `train.metric` is not among them.
    """
    if not (dataset.valid.label > 0).any():
        return {}
    scorer, metric = ModelScorer(model), recipe.train.metric
    progress.valid_users = progress.valid_users or _users(recipe, dataset, scorer, progress)
    figures = validate(recipe, dataset, scorer, progress.valid_users, recipe.seed)
    if metric not in figures:
        raise RecipeError(
            f"{metric!r} is not among the validation figures",
            where="train.metric",
            remedy=f"choose one of {', '.join(sorted(figures))}",
        )
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _users(recipe: Recipe, dataset: Dataset, scorer: ModelScorer, progress: TrainingProgress) -> int:
    """Users that validations rank, as many as are worth their time beside that of an epoch."""
    settings = recipe.train
    few = np.count_nonzero(np.diff(dataset.valid.indptr)) <= FEWEST_USERS
    if few or not progress.seconds:  # before the first step nothing says how long an epoch takes
        return settings.valid_users
    start = time.perf_counter()
    validate(recipe, dataset, scorer, PROBED_USERS, recipe.seed)
    user_s = (time.perf_counter() - start) / PROBED_USERS
    trained_s = progress.seconds / (progress.epoch + 1)
    return validation_users(settings.valid_users, settings.valid_share, trained_s, user_s)
