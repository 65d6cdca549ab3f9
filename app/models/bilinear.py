"""Bilinear content model: probability sigma(b_u' W y_c + a_u).

b_u is the user's behaviour vector, the mean content of what they did; y_c the content of
the candidate; W the learned affinity between the two; a_u the user's bias. Both know items
by content alone, so a new item ranks as soon as it has attributes.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from app.errors import RecipeError
from app.models.base import Content, History, Inputs, Model, ModelConfig
from app.models.parts import Attributes, event_weights
from app.tables.base import Tables


class BilinearConfig(ModelConfig):
    """Hyperparameters of the bilinear model."""

    half_life_days: float = Field(0.0, ge=0, description="age at which an event counts half; 0: all alike")
    prior: bool = Field(True, description="b_u has a constant 1 and y_c the item's log popularity as well")


class Bilinear(Model):
    """The logit b_u' W y_c + a_u, with F content floats an item."""

    Config = BilinearConfig
    SPACE: ClassVar[dict[str, Any]] = {"half_life_days": [0.0, 7.0, 30.0], "prior": [True, False]}
    config: BilinearConfig

    def __init__(self, config: BilinearConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        if inputs.item_dense + len(inputs.item_categories) == 0:
            raise RecipeError(
                "bilinear ranks by the content of items and there is none",
                where="features.item",
                remedy="name at least one item feature, or choose another model.name",
            )
        self.content = Attributes("item", inputs.item_dense, inputs.item_categories, tables)
        width = self.content.width
        self.affinity = nn.Parameter(torch.randn(width, width) * 0.01)  # W
        # W's row of the constant 1: over the item's content, and over its log popularity.
        self.constant = nn.Parameter(torch.zeros(width + 1)) if config.prior else None
        self.bias = tables("user_bias", inputs.users, 1)  # a

    def user_rows(self, users: Tensor) -> Tensor:
        """The bias a_u of each user."""
        return self.bias.lookup(users)

    def history_rows(self, items: Tensor) -> Tensor:
        """The content y of items in the history."""
        content: Tensor = self.content(self.item_dense[items], self.item_category[items])
        return content

    def item_rows(self, items: Tensor) -> Tensor:
        """W y_c, and what the constant makes of y_c."""
        content = self.history_rows(items)
        rows = content @ self.affinity.T
        if self.constant is None:
            return rows
        known = torch.cat([content, self.log_popularity[items].unsqueeze(-1)], -1)
        return torch.cat([rows, (known @ self.constant).unsqueeze(-1)], -1)

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """b_u (with its constant 1, where used) and a_u."""
        logits = torch.zeros_like(history.age)
        if self.config.half_life_days:
            logits = -torch.expm1(history.age) * (math.log(2) / (24 * self.config.half_life_days))
        weights = event_weights(logits, history.mask)
        behaviour = torch.matmul(weights.unsqueeze(1), history_rows).squeeze(1)
        if self.constant is not None:
            behaviour = torch.cat([behaviour, torch.ones_like(user_rows)], 1)
        return torch.cat([behaviour, user_rows], 1)

    def score(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        """The logits b_u' (W y_c) + a_u of the candidates."""
        behaviour, bias = user_state[:, :-1], user_state[:, -1:]
        return torch.matmul(item_rows, behaviour.unsqueeze(-1)).squeeze(-1) + bias
