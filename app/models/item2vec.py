"""Skip-grams of items: an item is known by those that the same people met.

Barkan and Koenigstein 2016, "Item2vec: neural item embedding for collaborative filtering": each target is
predicted from another item of its set, drawn anew in each epoch, against random negatives. Where events have
an order it is one of those within `window` events, as in word2vec. A user's state is the mean of the vectors
of their items, recent ones counting more where there is an order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from app.models.base import Content, History, Inputs, Loss, Model, ModelConfig, Sequences
from app.tables.base import Tables

BIAS = 8.0  # what a bias is multiplied by: stored smaller, it leaves the other floats of its row their bits


class Item2VecConfig(ModelConfig):
    """Hyperparameters of the skip-grams."""

    loss: Loss = "cross_entropy"
    width: int = Field(64, ge=1, description="floats of a vector")
    window: int = Field(5, ge=1, description="events before and after a target that predict it, if ordered")
    half_life: float = Field(
        10.0, ge=0, description="events back at which one counts half; 0, or without an order: all alike"
    )


class Item2Vec(Model):
    """Inner product of an item's output vector with the mean input vector of the history."""

    Config = Item2VecConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "width": [32, 64, 128, 256],
        "window": [2, 5, 10],
        "half_life": [0.0, 1.0, 3.0, 10.0, 30.0],
    }
    TRAINING: ClassVar[dict[str, Any]] = {
        "learning_rate": 3e-3,
        "table_optimizer": "same",
        "epochs": 50,
        "batch_size": 4096,
        "negatives": 100,
    }
    retrieves = True
    trains_on = "sets"
    reads = "all"
    config: Item2VecConfig

    def __init__(self, config: Item2VecConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        self.inputs_of_items = tables("item_input", inputs.items, config.width)
        self.outputs_of_items = tables("item_output", inputs.items, config.width)
        self.bias = tables("item_bias", inputs.items, 1)

    def history_rows(self, items: Tensor) -> Tensor:
        """Input vectors (…, D) of items."""
        return self.inputs_of_items.lookup(items)

    def item_rows(self, items: Tensor) -> Tensor:
        """Output vectors of items and a bias, (…, D + 1)."""
        bias = self.bias.lookup(items) + self.log_popularity[items].unsqueeze(-1) / BIAS
        return torch.cat([self.outputs_of_items.lookup(items), bias], -1)

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """The mean input vectors (B, D) of histories, and BIAS: (B, D + 1)."""
        weight = history.mask
        if self.inputs.ordered and self.config.half_life:
            back = torch.arange(weight.shape[1] - 1, -1, -1, device=weight.device)
            weight = weight * 0.5 ** (back / self.config.half_life)
        total = torch.matmul(weight.unsqueeze(1), history_rows).squeeze(1)
        return _with_bias(total / weight.sum(1, keepdim=True).clamp(min=1e-6))

    def states_of(self, batch: Sequences) -> tuple[Tensor, Tensor]:
        """The input vector of another item of each target's set, and BIAS: (T, D + 1), a state a target.

        Where a target is alone in its set, nothing predicts it but the bias.
        """
        items = batch.history.item
        sets = items[batch.owner]
        allowed = (sets > 0) & (sets != batch.target.unsqueeze(1))
        if self.inputs.ordered:
            at = (sets == batch.target.unsqueeze(1)).int().argmax(1, keepdim=True)
            distance = (torch.arange(items.shape[1], device=items.device) - at).abs()
            allowed &= distance <= self.config.window
        drawn = (torch.rand(allowed.shape, device=items.device) * allowed).argmax(1, keepdim=True)
        accompanied = allowed.any(1, keepdim=True)
        vectors = self.rows("history", sets.gather(1, drawn).squeeze(1)) * accompanied
        return _with_bias(vectors), torch.arange(len(vectors), device=items.device)


def _with_bias(vectors: Tensor) -> Tensor:
    return torch.cat([vectors, torch.full_like(vectors[:, :1], BIAS)], 1)
