"""EASE: a linear model that predicts each item of a user from all others, in closed form.

Steck 2019, "Embarrassingly shallow autoencoders for sparse data": the weights are those of a ridge
regression without self-weights, B = I - P diag(P)^-1 with P the inverse of the items' co-occurrences plus
`ridge` on the diagonal. Of each item the largest weights are kept, negative ones as well: 50 rank as all
do. An item that the user has met weighs itself by `again`, which matters where such items are ranked.

The whole past counts, event by event. By the half-life of the defaults that ranks as the last 50 events do;
without one it gains where people come back to items (a gift shop: NDCG@10 .259 on validation against .238
with the last 50 events, .220 with each item once) and loses on films (.412 against .437).

The matrix of all pairs of items is inverted in place, in 4 bytes a pair, and its rows are looked at some at
a time: MEASURED at 20,000 items, which stays below 8 GiB beside what else a training holds.
That is only while it is fitted: a bundle has the weights that are kept.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from scipy.linalg import lapack

from app.data.dataset import Array, Dataset
from app.errors import DataError, RecipeError
from app.models.item_knn import sets_of
from app.models.neighbours import NeighbourConfig, _NeighbourModel

MOST_ITEMS = 32_000  # 4 GiB: the matrix at its largest
BLOCK = 1 << 22  # entries of the matrix that are copied at a time


class EaseConfig(NeighbourConfig):
    """Hyperparameters of the linear model."""

    ridge: float = Field(100.0, gt=0, description="L2 penalty of the weights, in users")
    again: float = Field(1.0, ge=0, description="weight of an item for itself")


class Ease(_NeighbourModel):
    """Sum of regression weights between the candidate and the history."""

    Config = EaseConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "neighbours": [20, 50, 100, 200],
        "ridge": [10.0, 30.0, 100.0, 300.0, 1000.0],
        "half_life": [0.0, 3.0, 10.0, 30.0],
    }
    learns = False
    reads = "events"
    config: EaseConfig

    def weights(self, dataset: Dataset) -> tuple[Array, Array]:
        """The weights of largest magnitude of each item, (items, K).

        Raises:
            RecipeError: more items than MOST_ITEMS.
        """
        items = dataset.schema.items
        if items - 1 > MOST_ITEMS:
            raise RecipeError(
                f"ease keeps a weight for each pair of items, and there are {items - 1:,} items",
                where="model.name",
                remedy=f"choose item_knn, or leave at most {MOST_ITEMS:,} items by data.min_item_events",
            )
        inverse = _inverse(sets_of(dataset), self.config.ridge)
        count, step = self.neighbour.shape[1], max(1, BLOCK // items)
        ids, value = np.zeros((items, count), np.int32), np.zeros((items, count), np.float32)
        for start in range(0, items, step):
            rows = slice(start, min(start + step, items))
            weights = torch.from_numpy(self._weights(inverse, rows))
            best = weights.abs().topk(count, 1).indices
            ids[rows], value[rows] = best, weights.gather(1, best)
        return ids, value

    def _weights(self, inverse: Array, rows: slice) -> Array:
        """Rows (n, items) of B; entry [i, j] is what having i says of j."""
        # Only the lower triangle was computed, and the matrix is symmetric.
        block = np.concatenate([inverse[rows, : rows.stop], inverse[rows.stop :, rows].T], 1)
        square = block[:, rows]
        square[:] = np.tril(square) + np.tril(square, -1).T
        block /= -inverse.diagonal()
        np.fill_diagonal(square, self.config.again)
        block[:, 0] = 0.0
        if rows.start == 0:
            block[0] = 0.0
        return block


def _inverse(met: Any, ridge: float) -> Array:
    """The lower triangle (items, items) of the inverse of met' met + ridge, of sets (users, items).

    Raises:
        DataError: numerically it has none.
    """
    items = met.shape[1]
    gram = np.empty((items, items), np.float32, order="F")
    by_item, step = met.T.tocsr(), max(1, BLOCK // items)
    for start in range(0, items, step):
        gram[:, start : start + step] = (by_item[start : start + step] @ met).toarray().T
    gram[np.diag_indices(items)] += ridge
    # Both write over the matrix: lower=1 leaves the other triangle as it is.
    factor, failed = lapack.spotrf(gram, lower=1, clean=0, overwrite_a=1)
    if not failed:
        inverse, failed = lapack.spotri(factor, lower=1, overwrite_c=1)
    if failed:
        raise DataError(
            f"ease cannot invert the co-occurrences of {items - 1:,} items (at item {failed})",
            where="model.ridge",
            remedy="raise it",
        )
    lower: Array = inverse
    return lower
