"""Two towers for retrieval: the score is the inner product of a user and an item vector.

Trained with softmax over the other rows' positives, corrected for how often each is drawn
(logQ; Yi et al. 2019, "Sampling-bias-corrected neural modeling"). Both vectors have length
1, as the paper advises, and a temperature sharpens their cosine.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from app.models.base import Content, History, Inputs, Loss, Model, ModelConfig
from app.models.content_parts import ContentTower
from app.models.dropout import Dropout
from app.models.parts import Attributes, HistoryPool
from app.tables.base import Tables


class TwoTowerConfig(ModelConfig):
    """Hyperparameters of the two towers."""

    loss: Loss = "sampled_softmax"
    width: int = Field(64, ge=1, description="floats of the vectors, and of the embeddings")
    heads: int = Field(2, ge=0, description="ways to weigh the history; 0: no history")
    temperature: float = Field(0.1, gt=0, description="of the cosine; lower is sharper")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the user's features left out in training")


class TwoTower(Model):
    """User tower from id, content, history and moment; item tower from id and content."""

    Config = TwoTowerConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "width": [16, 32, 64, 128],
        "heads": [1, 2, 4],
        "temperature": (0.03, 0.3, "log"),
        "dropout": (0.0, 0.5),
    }
    retrieves = True
    unit_rows = True
    config: TwoTowerConfig

    def __init__(self, config: TwoTowerConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        width = config.width
        self.users = tables("user", inputs.users, width)
        self.items = tables("item", inputs.items, width)
        self.user_content = Attributes("user", inputs.user_dense, inputs.user_categories, tables)
        self.pool = HistoryPool(inputs.history, inputs.events, config.heads) if config.heads else None
        features = self.user_content.width + config.heads * width + inputs.context
        # The embedding enters as it is and the rest is added: an id then learns from its first event.
        self.user_tower = nn.Linear(features, width)
        self.item_tower = self.make_item_tower(tables)
        self.dropout = Dropout(config.dropout)

    def make_item_tower(self, tables: Tables) -> nn.Module:
        """What makes a vector (…, D) of an item's content (…, F) and (…, K), for a subclass to replace."""
        return ContentTower(self.inputs, (), self.config.width, tables)

    def user_rows(self, users: Tensor) -> Tensor:
        """Embedding and content of a user."""
        content = self.user_content(self.user_dense[users], self.user_category[users])
        return torch.cat([self.users.lookup(users), content], -1)

    def history_rows(self, items: Tensor) -> Tensor:
        """Vector of an item, the same as the candidate's."""
        if self.pool is None:
            return super().history_rows(items)
        if not self.training:
            return self.item_rows(items)
        # The same items come again and again in the histories of a batch, and a tower costs.
        distinct, row = torch.unique(items, return_inverse=True)
        return self.item_rows(distinct)[row]

    def item_rows(self, items: Tensor) -> Tensor:
        """Vectors (…, D) of items, of length 1."""
        content = self.item_tower(self.item_dense[items], self.item_category[items])
        return F.normalize(self.items.lookup(items) + content, dim=-1)

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """Vectors (B, D) of users, of length 1 / temperature."""
        width = self.config.width
        pooled = [self.pool(history_rows, history)] if self.pool is not None else []
        features = torch.cat([user_rows[:, width:], *pooled, context], 1)
        vector = user_rows[:, :width] + self.user_tower(self.dropout(features))
        return F.normalize(vector, dim=-1) / self.config.temperature

    def score(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        """Inner products of a user and its candidates."""
        return torch.matmul(item_rows, user_state.unsqueeze(-1)).squeeze(-1)

    def score_all(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        """Inner products of every user and every item."""
        return user_state @ item_rows.T
