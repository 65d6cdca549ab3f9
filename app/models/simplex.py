"""SimpleX: the cosine of a candidate with a mix of the user's own vector and the mean of their items.

Mao et al. 2021, "SimpleX: a simple and strong baseline for collaborative filtering", with a target left out
of the mean that predicts it. The paper's cosine contrastive loss is `loss = "cosine"`; the softmax of the
cosine over a temperature, with sampled negatives, measured better on a shop and is the default.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from app.models.base import Content, History, Inputs, Loss, Model, ModelConfig, Sequences
from app.models.dropout import Dropout
from app.tables.base import Tables


class SimpleXConfig(ModelConfig):
    """Hyperparameters of the mixed user vector."""

    loss: Loss = "cross_entropy"
    width: int = Field(64, ge=1, description="floats of a vector")
    own: float = Field(0.5, ge=0, lt=1, description="share of the user's own vector; the mean has the rest")
    temperature: float = Field(0.2, gt=0, description="of the cosine; lower is sharper")
    dropout: float = Field(0.1, ge=0, lt=1, description="of the user's vector in training")


class SimpleX(Model):
    """Cosine of the candidate with the user's own vector and the mean of their items, mixed."""

    Config = SimpleXConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "width": [32, 64, 128],
        "own": [0.0, 0.3, 0.5, 0.7],
        "dropout": (0.0, 0.5),
        "temperature": (0.05, 1.0, "log"),
    }
    TRAINING: ClassVar[dict[str, Any]] = {
        "learning_rate": 3e-3,
        "table_optimizer": "same",
        "epochs": 100,
        "batch_size": 2048,
        "negatives": 200,
    }
    retrieves = True
    unit_rows = True
    trains_on = "sets"
    reads = "all"
    config: SimpleXConfig

    def __init__(self, config: SimpleXConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        self.users = tables("user", inputs.users, config.width) if config.own else None
        self.items = tables("item", inputs.items, config.width)
        self.mix = nn.Linear(config.width, config.width, bias=False)
        self.dropout = Dropout(config.dropout)

    def user_rows(self, users: Tensor) -> Tensor:
        """The user's own vectors (…, D)."""
        return super().user_rows(users) if self.users is None else self.users.lookup(users)

    def history_rows(self, items: Tensor) -> Tensor:
        """Vectors (…, D) of items, of length 1."""
        return self.item_rows(items)

    def item_rows(self, items: Tensor) -> Tensor:
        """Vectors (…, D) of items, of length 1."""
        return F.normalize(self.items.lookup(items), dim=-1)

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """Vectors (B, D) of users, of length 1 / temperature."""
        mask = history.mask
        total = torch.matmul(mask.unsqueeze(1), history_rows).squeeze(1)
        return self._mixed(user_rows, total, mask.sum(1, keepdim=True))

    def states_of(self, batch: Sequences) -> tuple[Tensor, Tensor]:
        """Vectors (T, D), a state a target: of the user's items without it."""
        mask, owner = batch.history.mask, batch.owner
        total = torch.matmul(mask.unsqueeze(1), self.rows("history", batch.history.item)).squeeze(1)
        others = total[owner] - self.rows("history", batch.target)
        size = mask.sum(1, keepdim=True)[owner] - 1
        states = self._mixed(self.rows("user", batch.user)[owner], others, size)
        return states, torch.arange(len(states), device=states.device)

    def _mixed(self, user_rows: Tensor, total: Tensor, size: Tensor) -> Tensor:
        """States (B, D) of the user's own vectors and the sums of so many items."""
        state = (1 - self.config.own) * self.mix(total / size.clamp(min=1))
        if self.users is not None:
            state = state + self.config.own * user_rows
        return F.normalize(self.dropout(state), dim=-1) / self.config.temperature
