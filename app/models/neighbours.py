"""What models in closed form that score by item-to-item weights share: the K largest weights of each item.

The score of a candidate is the sum of its weights from the events of the history, recent ones counting
more where events have an order. Popularity is added, so small that it ranks only what no weight tells
apart: a user without a history gets the popular items.

A history row holds an item's neighbours and their weights side by side, and a candidate's row its own id:
so the models fit the four pieces, and export as a scatter and a gather.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from app.data.dataset import Array, Dataset
from app.models.base import Content, History, Inputs, Model, ModelConfig
from app.tables.base import Tables


class NeighbourConfig(ModelConfig):
    """Hyperparameters of stored weights between items."""

    neighbours: int = Field(50, ge=1, description="largest weights kept of each item")
    half_life: float = Field(
        10.0, ge=0, description="events back at which one counts half; 0, or without an order: all alike"
    )
    prior: float = Field(0.01, ge=0, description="weight that being the most popular item is worth")


class _NeighbourModel(Model):
    """Sum of stored weights between the candidate and the history."""

    Config: ClassVar[type[ModelConfig]] = NeighbourConfig
    quantisable = False  # rows hold ids
    learns = False
    config: NeighbourConfig
    neighbour: Tensor
    similarity: Tensor
    prior: Tensor

    def __init__(self, config: NeighbourConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        width = min(config.neighbours, inputs.items)
        self.register_buffer("neighbour", torch.zeros(inputs.items, width, dtype=torch.int32))
        self.register_buffer("similarity", torch.zeros(inputs.items, width))
        self.register_buffer("prior", torch.zeros(inputs.items))

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
        ids, weighted = history_rows.chunk(2, 2)
        if self.inputs.ordered and self.config.half_life > 0:
            back = torch.arange(history.mask.shape[1] - 1, -1, -1, device=history_rows.device)
            weighted = weighted * (0.5 ** (back / self.config.half_life)).unsqueeze(-1)
        state = history_rows.new_zeros((history_rows.shape[0], self.inputs.items))
        return state.scatter_add(1, ids.flatten(1).long(), weighted.flatten(1))

    def score(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        """The summed similarities of the candidates (B, C), popularity added."""
        return user_state.gather(1, item_rows[..., 0].long()) + item_rows[..., 1]

    def score_all(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        """The summed similarities of every item (B, N), popularity added."""
        return user_state.index_select(1, item_rows[:, 0].long()) + item_rows[:, 1]

    def weights(self, dataset: Dataset) -> tuple[Array, Array]:
        """The largest weights (items, K) of each item and whose they are, from the training part."""
        raise NotImplementedError

    def fit(self, dataset: Dataset) -> None:
        """Find the neighbours of every item, from all training events whatever their type."""
        ids, weights = self.weights(dataset)
        self.neighbour.copy_(torch.from_numpy(ids))
        self.similarity.copy_(torch.from_numpy(weights))
        counts = torch.from_numpy(dataset.popularity).float()
        self.prior.copy_(self.config.prior * counts / counts.max().clamp(min=1))


def largest(values: Array, count: int) -> Array:
    """Indices of the largest `count` of values (N,), in order."""
    best = np.argpartition(-values, count)[:count] if len(values) > count else np.arange(len(values))
    return best[np.argsort(-values[best], kind="stable")]
