"""Item k nearest neighbours: items that the same people met as those of the user's history.

Similarity is the cosine of two items' sets of users, with shrinkage (Sarwar 2001; Deshpande
and Karypis 2004). The score of a candidate is the sum of its similarities to the events of
the history, recent ones weighing more; an item is its own neighbour. Popularity is added, so
small that it ranks only what no neighbour tells apart: a user without a history gets the
popular items. The defaults are a compromise of the validation parts of three public sets
(films, cosmetics, a gift shop), so as to be a baseline that is hard to beat untuned.

Because recent events tell most, the limit of the history does not weaken it: on the films,
the whole history does worse than the last 50 events, and these worse than the last 20.

A history row holds an item's neighbours and their similarities side by side, and a
candidate's row its own id: so the model fits the four pieces, and exports as a scatter and
a gather.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from scipy import sparse
from torch import Tensor

from app.data.dataset import Array, Dataset, Part
from app.models.base import Content, History, Inputs, Model, ModelConfig
from app.tables.base import Tables

LONGEST = 2000  # last events of a user that count: pairs grow with the square
PAIRS = 1 << 24  # similarities in memory at a time


class ItemKnnConfig(ModelConfig):
    """Hyperparameters of the neighbours and of their weights."""

    neighbours: int = Field(50, ge=1, description="most similar items kept of each")
    shrinkage: float = Field(10.0, ge=0, description="pulls similarities that few users support to 0")
    half_life: float = Field(10.0, ge=0, description="events back at which one counts half; 0: all alike")
    prior: float = Field(0.01, ge=0, description="similarity that being the most popular item is worth")


class ItemKnn(Model):
    """Sum of similarities between the candidate and the history."""

    Config = ItemKnnConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "neighbours": [20, 50, 100, 200],
        "shrinkage": [0.0, 10.0, 50.0],
        "half_life": [0.0, 3.0, 10.0, 30.0],
    }
    quantisable = False  # rows hold ids
    learns = False
    config: ItemKnnConfig
    neighbour: Tensor
    similarity: Tensor
    prior: Tensor
    weight: Tensor

    def __init__(self, config: ItemKnnConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        width = min(config.neighbours, inputs.items)
        self.register_buffer("neighbour", torch.zeros(inputs.items, width, dtype=torch.int32))
        self.register_buffer("similarity", torch.zeros(inputs.items, width))
        self.register_buffer("prior", torch.zeros(inputs.items))
        back = torch.arange(inputs.history - 1, -1, -1)
        weight = 0.5 ** (back / config.half_life) if config.half_life else torch.ones(inputs.history)
        self.register_buffer("weight", weight, persistent=False)

    def history_rows(self, items: Tensor) -> Tensor:
        """Ids of the neighbours, exact in float32 up to 16 million, then their similarities: (…, 2K)."""
        return torch.cat([self.neighbour[items].float(), self.similarity[items]], -1)

    def item_rows(self, items: Tensor) -> Tensor:
        """The id of each item and the score that its popularity adds, (…, 2)."""
        return torch.stack([items.float(), self.prior[items]], -1)

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """The summed similarity of every item, (B, N)."""
        ids, similarity = history_rows.chunk(2, 2)
        weighted = similarity * self.weight.unsqueeze(-1)
        state = history_rows.new_zeros((history_rows.shape[0], self.inputs.items))
        return state.scatter_add(1, ids.flatten(1).long(), weighted.flatten(1))

    def score(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        """The summed similarities of the candidates (B, C), popularity added."""
        return user_state.gather(1, item_rows[..., 0].long()) + item_rows[..., 1]

    def score_all(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        """The summed similarities of every item (B, N), popularity added."""
        return user_state.index_select(1, item_rows[:, 0].long()) + item_rows[:, 1]

    def fit(self, dataset: Dataset) -> None:
        """Find the neighbours of every item, from all training events whatever their type."""
        ids, similarity = neighbours(sets_of(dataset), self.neighbour.shape[1], self.config.shrinkage)
        self.neighbour.copy_(torch.from_numpy(ids))
        self.similarity.copy_(torch.from_numpy(similarity))
        counts = torch.from_numpy(dataset.popularity).float()
        self.prior.copy_(self.config.prior * counts / counts.max().clamp(min=1))


def sets_of(dataset: Dataset, *parts: Part) -> sparse.csr_array:
    """(users, items) 1 where the user met the item, among their last LONGEST events of each part.

    Args:
        dataset: has the events.
        parts: whose events count; by default those of the training part.
    """
    pairs = [_last_events(part) for part in parts or (dataset.train,)]
    user, item = (np.concatenate(columns) for columns in zip(*pairs, strict=True))
    shape = (dataset.schema.users, dataset.schema.items)
    met = sparse.coo_array((np.ones(len(user), np.float32), (user, item)), shape=shape).tocsr()
    met.data[:] = 1.0  # the conversion adds up repetitions
    return met


def _last_events(part: Part) -> tuple[Array, Array]:
    """User and item of the last LONGEST events of each user; row 0 is no item."""
    user, item = np.asarray(part.user), np.asarray(part.item)
    kept = np.arange(len(user)) >= (np.asarray(part.indptr)[1:] - LONGEST)[user]
    kept &= item > 0
    return user[kept], item[kept]


def neighbours(met: sparse.csr_array, count: int, shrinkage: float) -> tuple[Array, Array]:
    """The `count` most similar items of each, and their similarities, both (items, count).

    Similarity of items with n and m users, c of them common: c / (sqrt(n m) + shrinkage).
    Similarities are computed sparsely and some items at a time. Columns beyond an item's
    neighbours are 0, with similarity 0.
    """
    items = met.shape[1]
    root = np.sqrt(np.asarray(met.sum(0)).ravel())
    by_item = met.T.tocsr()
    ids, value = np.zeros((items, count), np.int32), np.zeros((items, count), np.float32)
    step = max(1, PAIRS // items)
    for start in range(0, items, step):
        common = (by_item[start : start + step] @ met).tocsr()
        rows = start + np.repeat(np.arange(common.shape[0]), np.diff(common.indptr))
        common.data /= root[rows] * root[common.indices] + shrinkage
        for row, (low, high) in enumerate(zip(common.indptr[:-1], common.indptr[1:], strict=True), start):
            best = low + _largest(common.data[low:high], count)
            ids[row, : len(best)], value[row, : len(best)] = common.indices[best], common.data[best]
    return ids, value


def _largest(values: Array, count: int) -> Array:
    """Indices of the largest `count` values, in order."""
    best = np.argpartition(-values, count)[:count] if len(values) > count else np.arange(len(values))
    return best[np.argsort(-values[best], kind="stable")]
