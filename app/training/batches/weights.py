"""How much each event to predict counts, by its type (`train.event_weights`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from app.data.dataset import Array, Dataset
from app.errors import DataError, RecipeError


def weights_of_types(dataset: Dataset, weights: Mapping[str, float]) -> Array:
    """(events,) float32: the weight of each type of event, 1 where it is not named.

    Raises:
        RecipeError: a type that the log does not have.
    """
    known = dataset.schema.events
    for name in weights:
        if name not in known[1:]:
            raise RecipeError(
                f"the log has no events of type {name!r}",
                where="train.event_weights",
                remedy=f"its types are {', '.join(map(repr, known[1:]))}",
            )
    return np.array([weights.get(name, 1.0) for name in known], np.float32)


def learned_rows(dataset: Dataset, of_types: Array) -> Array:
    """(N,) bool: the training events to predict, those of a type whose weight is above 0.

    Raises:
        DataError: there are none.
    """
    part = dataset.train
    learned: Array = (np.asarray(part.label) > 0) & (of_types[part.event] > 0)
    if not learned.any():
        raise DataError(
            "no event to learn from in the training part",
            where=str(dataset.path),
            remedy="check data.positive, data.where, train.event_weights and the split",
        )
    return learned
