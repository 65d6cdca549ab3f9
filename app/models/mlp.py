"""Embeddings, content and history through dense layers.

The first dense layer is linear in its input, so it is split: the user's half runs once a
request (`user_state`), the item's half once and for all (`item_rows`), and a candidate
costs an addition and the remaining layers.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from app.models.base import Content, History, Inputs, Model, ModelConfig
from app.models.parts import Attributes, HistoryPool, HistorySimilarity, dense_layers
from app.models.resize import Hidden
from app.tables.base import Tables


class MlpConfig(ModelConfig):
    """Hyperparameters of the dense ranker."""

    width: int = Field(32, ge=1, description="floats of a user or item embedding")
    hidden: list[int] = Field(default=[64, 32], min_length=1, description="widths of the dense layers")
    heads: int = Field(2, ge=0, description="ways to weigh the history; 0: no history")
    similarity: bool = Field(False, description="score nearness to the items of the history, too")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the dense inputs left out in training")


class Mlp(Model):
    """Dense layers over user, history, context and item."""

    Config = MlpConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "width": [8, 16, 32, 64],
        "hidden": [[32], [64, 32], [128, 64]],
        "heads": [0, 1, 2, 4],
        "similarity": [False, True],
        "dropout": (0.0, 0.5),
    }
    config: MlpConfig

    def __init__(self, config: MlpConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        width, first = config.width, config.hidden[0]
        self.users = tables("user", inputs.users, width)
        self.items = tables("item", inputs.items, width)
        self.user_content = Attributes("user", inputs.user_dense, inputs.user_categories, tables)
        self.item_content = Attributes("item", inputs.item_dense, inputs.item_categories, tables)
        self.pool = HistoryPool(inputs.history, inputs.events, config.heads) if config.heads else None
        self.near = HistorySimilarity(inputs.history, inputs.events, width) if config.similarity else None
        about_user = width + self.user_content.width
        self.user_half = nn.Linear(about_user + config.heads * width + inputs.context, first)
        self.item_half = nn.Linear(width + self.item_content.width, first, bias=False)
        # What of an item holds for every user, such as its popularity, goes past the layers.
        self.item_bias = tables("item_bias", inputs.items, 1)
        self.layers = dense_layers(config.hidden, config.dropout, out=1)

    def removable_neurons(self) -> list[Hidden]:
        """The neurons of the first layer, which is in two halves; `dense_layers` has the others."""
        return [Hidden(("user_half", "item_half"), "layers")]

    def user_rows(self, users: Tensor) -> Tensor:
        """Embedding and content of a user."""
        content = self.user_content(self.user_dense[users], self.user_category[users])
        return torch.cat([self.users.lookup(users), content], -1)

    def history_rows(self, items: Tensor) -> Tensor:
        """Embedding of an item, the same as the candidate's."""
        used = self.pool is not None or self.near is not None
        return self.items.lookup(items) if used else super().history_rows(items)

    def item_rows(self, items: Tensor) -> Tensor:
        """The item's half of the first layer, its bias, and its direction where similarity counts."""
        content = self.item_content(self.item_dense[items], self.item_category[items])
        embedding = self.items.lookup(items)
        half = self.item_half(torch.cat([embedding, content], -1))
        near = [self.near.item(embedding)] if self.near is not None else []
        return torch.cat([half, self.item_bias.lookup(items), *near], -1)

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """The user's half of the first layer, and the history where similarity counts."""
        pooled = [self.pool(history_rows, history)] if self.pool is not None else []
        half: Tensor = self.user_half(torch.cat([user_rows, *pooled, context], 1))
        near = [self.near.state(history_rows, history)] if self.near is not None else []
        return torch.cat([half, *near], 1)

    def score(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        """Logits of the candidates, by the remaining layers."""
        first = item_rows.shape[-1] - 1 - (0 if self.near is None else self.near.width)
        half, bias = item_rows[..., :first], item_rows[..., first]
        deep: Tensor = self.layers(user_state[:, :first].unsqueeze(1) + half)
        logits = deep.squeeze(-1) + bias
        if self.near is not None:
            logits = logits + self.near(user_state[:, first:], item_rows[..., first + 1 :])
        return logits
