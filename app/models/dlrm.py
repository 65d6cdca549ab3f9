"""DLRM: inner products of all pairs of features (Naumov et al. 2019, "Deep learning recommendation model for
personalization and recommendation systems").

Every category, the user's id and the item's among them, has an embedding of one width; dense features
become one more vector of that width by the bottom layers; the inner products of all pairs of vectors, and
the dense vectors themselves, go through the top layers. The history enters as a vector a head.

Where the paper has one bottom part, there is one for the user with the moment and one for the item. So
what the user's vectors make among themselves runs once a request.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from app.models.base import Content, History, Inputs, Loss, Model, ModelConfig
from app.models.field_parts import Fields
from app.models.parts import HistoryPool, dense_layers
from app.tables.base import Tables


class DlrmConfig(ModelConfig):
    """Hyperparameters of the embeddings and of the dense layers."""

    loss: Loss = "bce"
    width: int = Field(16, ge=1, description="floats of every embedding")
    bottom: list[int] = Field(
        default=[64], min_length=1, description="widths of the layers of dense features"
    )
    hidden: list[int] = Field(default=[128, 64], min_length=1, description="widths of the top layers")
    heads: int = Field(2, ge=0, description="ways to weigh the history; 0: no history")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the top inputs left out in training")


class Dlrm(Model):
    """Inner products of pairs of fields, through dense layers."""

    Config = DlrmConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "width": [8, 16, 32, 64],
        "bottom": [[32], [64], [128, 64]],
        "hidden": [[64], [128, 64], [256, 128]],
        "heads": [0, 1, 2, 4],
        "dropout": (0.0, 0.5),
    }
    config: DlrmConfig

    def __init__(self, config: DlrmConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        width = config.width
        self.users = Fields("user", inputs.users, inputs.user_categories, width, tables)
        self.items = Fields("item", inputs.items, inputs.item_categories, width, tables)
        self.pool = HistoryPool(inputs.history, inputs.events, config.heads) if config.heads else None
        self.user_bottom = _bottom(inputs.user_dense + inputs.context, config)
        self.item_bottom = _bottom(inputs.item_dense, config)
        dense = [bottom is not None for bottom in (self.user_bottom, self.item_bottom)]
        user, item = self.users.count + config.heads + dense[0], self.items.count + dense[1]
        self.user_pairs, self.item_pairs = _Pairs(user), _Pairs(item)
        # The first top layer is linear in its input: the user's half of it runs once a request.
        self.user_half = nn.Linear(width * dense[0] + self.user_pairs.count, config.hidden[0])
        mixed = width * dense[1] + self.item_pairs.count + user * item
        self.item_half = nn.Linear(mixed, config.hidden[0], bias=False)
        self.layers = dense_layers(config.hidden, config.dropout, out=1)

    def user_rows(self, users: Tensor) -> Tensor:
        """Embeddings of a user's id and categories, and the dense features as they are."""
        return torch.cat([self.users(users, self.user_category[users]), self.user_dense[users]], -1)

    def history_rows(self, items: Tensor) -> Tensor:
        """Embedding of an item, the same as the candidate's."""
        return self.items.ids.lookup(items) if self.pool is not None else super().history_rows(items)

    def item_rows(self, items: Tensor) -> Tensor:
        """Vectors of an item: its id, its categories, and its dense features through the bottom layers."""
        fields: Tensor = self.items(items, self.item_category[items])
        if self.item_bottom is None:
            return fields
        return torch.cat([fields, self.item_bottom(self.item_dense[items])], -1)

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """The user's vectors, and the user's half of the first top layer."""
        looked_up = self.users.count * self.config.width
        parts = [user_rows[:, :looked_up]]
        if self.pool is not None:
            parts.append(self.pool(history_rows, history))
        dense = user_rows[:, :0]
        if self.user_bottom is not None:
            dense = self.user_bottom(torch.cat([user_rows[:, looked_up:], context], 1))
        vectors = torch.cat([*parts, dense], 1)
        products = self.user_pairs(self._apart(vectors))
        return torch.cat([vectors, self.user_half(torch.cat([dense, products], 1))], 1)

    def score(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        """Logits of the candidates, by the products of the item's vectors with each other and the user's."""
        width, first = self.config.width, self.config.hidden[0]
        user = self._apart(user_state[:, :-first])
        item = self._apart(item_rows)
        mixed = torch.matmul(item, user.transpose(1, 2).unsqueeze(1)).flatten(2)
        dense = item_rows[..., self.items.count * width :]
        half: Tensor = self.item_half(torch.cat([dense, self.item_pairs(item), mixed], -1))
        logits: Tensor = self.layers(user_state[:, None, -first:] + half)
        return logits.squeeze(-1)

    def _apart(self, vectors: Tensor) -> Tensor:
        """(…, F * D) -> (…, F, D)."""
        return vectors.reshape(*vectors.shape[:-1], -1, self.config.width)


class _Pairs(nn.Module):
    """The inner products of all pairs of `vectors` vectors."""

    def __init__(self, vectors: int) -> None:
        super().__init__()
        first, second = torch.triu_indices(vectors, vectors, 1)
        self.count = len(first)
        self.register_buffer("index", first * vectors + second, persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors (…, F, D) -> (…, F (F - 1) / 2)."""
        products = torch.matmul(vectors, vectors.transpose(-1, -2)).flatten(-2)
        return products[..., self.get_buffer("index")]


def _bottom(features: int, config: DlrmConfig) -> nn.Sequential | None:
    """Dense layers from so many features to a vector; None where there are no features."""
    if not features:
        return None
    return nn.Sequential(
        nn.Linear(features, config.bottom[0]), dense_layers(config.bottom, 0.0, out=config.width)
    )
