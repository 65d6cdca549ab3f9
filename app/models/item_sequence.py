"""Item-to-item rules of sequences: what people met soon after the last items of the user's history.

Each event counts for the up to WINDOW events that follow it in its user's sequence, 1 for the next one
and 1/d for the d-th, and these count `back` times as much for it. Divided by the users of the item plus
shrinkage that is nearly the chance of meeting one item after the other (Ludewig and Jannach 2018,
"Evaluation of session-based recommendation algorithms", sequential rules). An item that the user has met
weighs itself 1.5 times its nearest neighbour.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from scipy import sparse

from app.data.dataset import Array, Dataset, Part
from app.errors import RecipeError
from app.models.item_knn import sets_of
from app.models.neighbours import NeighbourConfig, _NeighbourModel, largest

WINDOW = 5  # events after one that count
AGAIN = 1.5  # weight of an item for itself, in weights of its nearest neighbour
BLOCK = 1 << 20  # events whose pairs are in memory at a time


class ItemSequenceConfig(NeighbourConfig):
    """Hyperparameters of the rules."""

    half_life: float = Field(1.0, ge=0, description="events back at which one counts half; 0: all alike")
    shrinkage: float = Field(3.0, ge=0, description="pulls rules that few users support to 0")
    back: float = Field(0.3, ge=0, le=1, description="weight of what came before; 1: order means nothing")


class ItemSequence(_NeighbourModel):
    """Sum of the rules from the events of the history to the candidate."""

    Config = ItemSequenceConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "neighbours": [20, 50, 100, 200],
        "shrinkage": [0.0, 3.0, 10.0],
        "half_life": [0.5, 1.0, 3.0, 10.0],
        "back": [0.0, 0.3, 1.0],
    }
    learns = False
    config: ItemSequenceConfig

    def weights(self, dataset: Dataset) -> tuple[Array, Array]:
        """The strongest rules of each item, (items, K).

        Raises:
            RecipeError: the events have no order.
        """
        if not self.inputs.ordered:
            raise RecipeError(
                "item_sequence learns what follows what, and the events have no order",
                where="model.name",
                remedy="choose item_knn, or name the column of times in data.timestamp",
            )
        items, count = dataset.schema.items, self.neighbour.shape[1]
        followed = rules(dataset.train, items, self.config.back)
        users = np.asarray(sets_of(dataset).sum(0)).ravel()
        ids, value = np.zeros((items, count), np.int32), np.zeros((items, count), np.float32)
        for row, (low, high) in enumerate(zip(followed.indptr[:-1], followed.indptr[1:], strict=True)):
            strength = followed.data[low:high] / (users[row] + self.config.shrinkage or 1)
            best = largest(strength, count - 1)
            kept = np.arange(1, len(best) + 1)
            ids[row, kept], value[row, kept] = followed.indices[low:high][best], strength[best]
            ids[row, 0], value[row, 0] = row, AGAIN * strength.max(initial=0.0)
        return ids, value


def rules(part: Part, items: int, back: float) -> sparse.csr_array:
    """(items, items) float32: how often, and how soon, the second item followed the first; 0 for itself."""
    total = sparse.csr_array((items, items), dtype=np.float32)
    for start in range(0, len(part), BLOCK):
        rows = slice(start, start + BLOCK + WINDOW)  # pairs begin within the block
        user, item = np.asarray(part.user[rows]), np.asarray(part.item[rows])
        for distance in range(1, WINDOW + 1):
            first, second = item[:-distance][:BLOCK], item[distance:][:BLOCK]
            together = (user[:-distance] == user[distance:])[:BLOCK] & (first != second)
            first, second = first[together], second[together]
            weight = np.full(len(first), 1 / distance, np.float32)
            ahead = sparse.coo_array((weight, (first, second)), shape=(items, items)).tocsr()
            total = total + ahead + back * ahead.T.tocsr()
    total.eliminate_zeros()
    return total
