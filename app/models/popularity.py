"""Popularity: every user gets the items with the most events. Any other model should rank better."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from app.data.dataset import Dataset
from app.models.base import Content, History, Inputs, Model, ModelConfig
from app.tables.base import Tables


class Popularity(Model):
    """The logit of an item is the log of its share of the positive training events."""

    SPACE: ClassVar[dict[str, Any]] = {}
    quantisable = False  # one float an item, and rounding would tie items
    learns = False

    def __init__(self, config: ModelConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        self.register_buffer("share", torch.zeros(inputs.items))

    def item_rows(self, items: Tensor) -> Tensor:
        """The log share of each item, (…, 1)."""
        return self.get_buffer("share")[items].unsqueeze(-1)

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """An empty state (B, 0): nothing of the user counts."""
        return context.new_zeros((context.shape[0], 0))

    def score(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        """The log shares of the candidates, (B, C)."""
        return item_rows[..., 0]

    def fit(self, dataset: Dataset) -> None:
        """Count the events; each item counts one more, so that its logarithm is finite."""
        counts = torch.from_numpy(dataset.popularity + 1.0)
        self.get_buffer("share").copy_((counts / counts.sum()).log())
