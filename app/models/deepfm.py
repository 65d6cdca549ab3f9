"""DeepFM: a factorization machine and dense layers over the same embeddings (Guo et al. 2017, "DeepFM: A
factorization-machine based neural network for CTR prediction").

Every field (the user's id and the item's, each category, the dense features of a side together, each head
of the history, the context) is a weight and a vector of one width. The machine adds up the weights and the
inner products of all pairs of vectors, as half of |sum|^2 less the sum of the |vector|^2 (Rendle 2010); so
a candidate costs one product with the sum of the user's vectors, and the dense layers.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from app.models.base import Content, History, Inputs, Loss, Model, ModelConfig
from app.models.field_parts import Fields
from app.models.parts import HistoryPool, dense_layers
from app.models.resize import Hidden
from app.tables.base import Tables


class DeepfmConfig(ModelConfig):
    """Hyperparameters of the machine and of the dense layers."""

    loss: Loss = "bce"
    width: int = Field(16, ge=1, description="floats of a field's vector")
    hidden: list[int] = Field(default=[128, 64], min_length=1, description="widths of the dense layers")
    heads: int = Field(2, ge=0, description="ways to weigh the history; 0: no history")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the dense inputs left out in training")


class Deepfm(Model):
    """A factorization machine beside dense layers."""

    Config = DeepfmConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "width": [8, 16, 32, 64],
        "hidden": [[64], [128, 64], [256, 128]],
        "heads": [0, 1, 2, 4],
        "dropout": (0.0, 0.5),
    }
    config: DeepfmConfig

    def __init__(self, config: DeepfmConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        field, first = config.width + 1, config.hidden[0]  # the weight stands behind the vector
        self.users = Fields("user", inputs.users, inputs.user_categories, field, tables)
        self.items = Fields("item", inputs.items, inputs.item_categories, field, tables)
        self.user_field = _projection(inputs.user_dense, field)
        self.item_field = _projection(inputs.item_dense, field)
        self.context_field = _projection(inputs.context, field)
        self.pool = HistoryPool(inputs.history, inputs.events, config.heads) if config.heads else None
        dense = [projection is not None for projection in (self.user_field, self.context_field)]
        user, item = self.users.count + sum(dense) + config.heads, self.items.count + bool(inputs.item_dense)
        self.user_half = nn.Linear(user * config.width, first)
        self.item_half = nn.Linear(item * config.width, first, bias=False)
        self.layers = dense_layers(config.hidden, config.dropout, out=1)

    def removable_neurons(self) -> list[Hidden]:
        """The neurons of the first layer, which is in two halves; `dense_layers` has the others."""
        return [Hidden(("user_half", "item_half"), "layers")]

    def user_rows(self, users: Tensor) -> Tensor:
        """The fields of a user that stay: id, categories, dense features."""
        looked_up = self.users(users, self.user_category[users])
        return torch.cat([looked_up, *_projected(self.user_field, self.user_dense[users])], -1)

    def history_rows(self, items: Tensor) -> Tensor:
        """The field of an item's id, the same as the candidate's."""
        return self.items.ids.lookup(items) if self.pool is not None else super().history_rows(items)

    def item_rows(self, items: Tensor) -> Tensor:
        """The fields of an item: id, categories, dense features."""
        looked_up = self.items(items, self.item_category[items])
        return torch.cat([looked_up, *_projected(self.item_field, self.item_dense[items])], -1)

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """The sum of the user's vectors, what the machine makes of them alone, half of the first layer."""
        pooled = [self.pool(history_rows, history)] if self.pool is not None else []
        fields = torch.cat([user_rows, *pooled, *_projected(self.context_field, context)], 1)
        vectors, total, alone = self._machine(fields)
        return torch.cat([total, alone.unsqueeze(1), self.user_half(vectors)], 1)

    def score(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        """Logits of the candidates: both parts of the machine, their product, and the dense layers."""
        width = self.config.width
        vectors, total, alone = self._machine(item_rows)
        pairs = (total * user_state[:, None, :width]).sum(-1)
        deep: Tensor = self.layers(user_state[:, None, width + 1 :] + self.item_half(vectors))
        return user_state[:, width : width + 1] + alone + pairs + deep.squeeze(-1)

    def _machine(self, fields: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of fields (…, F * (D + 1)): vectors (…, F * D), their sum (…, D), and weights and products (…)."""
        each = fields.reshape(*fields.shape[:-1], -1, self.config.width + 1)
        vectors, weights = each[..., :-1], each[..., -1]
        total = vectors.sum(-2)
        products = (total.square() - vectors.square().sum(-2)).sum(-1) / 2
        return vectors.flatten(-2), total, weights.sum(-1) + products


def _projection(features: int, width: int) -> nn.Linear | None:
    """Dense features as one field: of a bag of words the sum of its words' vectors."""
    return nn.Linear(features, width, bias=False) if features else None


def _projected(projection: nn.Linear | None, features: Tensor) -> list[Tensor]:
    return [] if projection is None else [projection(features)]
