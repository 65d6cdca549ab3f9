"""The baseline of logged labels: what a user likes on the whole, and how an item is liked on the whole."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from app.data.dataset import Array, Dataset
from app.models.base import Batch, Reads

NAME = "label_means"
ITEM_DAMPING, USER_DAMPING = 25.0, 10.0  # events of the mean label that each item and user has beside its own
SMALLEST = 1e-3  # probability


class LabelMeans:
    """Mean label, plus how far the item's is above it, plus how far the user's is above the items' of it.

    Both means are damped, so that few events tell little (Koren 2010, "Factor in the neighbors", section
    2.1: baseline estimates). The score is the logit of that probability.
    """

    reads: Reads = "recent"

    def __init__(self, dataset: Dataset) -> None:
        part = dataset.train
        user, item, label = (np.asarray(column) for column in (part.user, part.item, part.label))
        self.mean = float(label.mean())
        self.item = _damped(item, label - self.mean, dataset.schema.items, ITEM_DAMPING)
        rest = label - self.mean - self.item[item]
        self.user = _damped(user, rest, dataset.schema.users, USER_DAMPING)
        self.item[0] = self.user[0] = 0.0

    def all(self, batch: Batch) -> Tensor:
        """Scores (B, items) of every item."""
        return self._logits(self.user[batch.user.numpy(), None] + self.item)

    def candidates(self, batch: Batch) -> Tensor:
        """Scores (B, C) of the candidates."""
        return self._logits(self.user[batch.user.numpy(), None] + self.item[batch.item.numpy()])

    def _logits(self, above: Array) -> Tensor:
        probability = np.clip(self.mean + above, SMALLEST, 1 - SMALLEST)
        return torch.from_numpy(np.log(probability / (1 - probability)).astype(np.float32))


def _damped(ids: Array, values: Array, count: int, damping: float) -> Array:
    events = np.bincount(ids, minlength=count)
    means: Array = np.bincount(ids, values, count) / (events + damping)
    return means
