"""Neural matrix factorisation (He et al. 2017, "Neural Collaborative Filtering").

Two towers with tables of their own: GMF, a weighted inner product, and an MLP; the last
layer adds them. Folded as far as it is linear: GMF's output weights into the user's side,
the item's half of the first dense layer into the item's rows. With `heads` the user's side
of both towers also sees the pooled history; 0 gives the model of the paper.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from app.models.base import Content, History, Inputs, Model, ModelConfig
from app.models.parts import Attributes, HistoryPool, dense_layers
from app.models.resize import Hidden
from app.tables.base import Tables


class NeumfConfig(ModelConfig):
    """Hyperparameters of the two towers of NeuMF."""

    factors: int = Field(32, ge=1, description="floats of GMF's embeddings")
    width: int = Field(16, ge=1, description="floats of the MLP tower's embeddings")
    hidden: list[int] = Field(default=[32, 16], min_length=1, description="widths of the dense layers")
    heads: int = Field(2, ge=0, description="ways to weigh the history; 0: as in the paper")
    history_width: int = Field(32, ge=1, description="floats of an item in the history")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the dense inputs left out in training")


class Neumf(Model):
    """The GMF and the MLP tower, whose outputs are added."""

    Config = NeumfConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "factors": [8, 16, 32, 64],
        "width": [8, 16, 32],
        "hidden": [[16], [32, 16], [64, 32]],
        "heads": [0, 1, 2, 4],
        "history_width": [16, 32, 64],
        "dropout": (0.0, 0.5),
    }
    config: NeumfConfig

    def __init__(self, config: NeumfConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        factors, width, first = config.factors, config.width, config.hidden[0]
        # One table a side holds both towers' rows: they are always looked up together.
        self.users = tables("user", inputs.users, factors + width)
        self.items = tables("item", inputs.items, factors + width + 1)
        self.user_content = Attributes("user", inputs.user_dense, inputs.user_categories, tables)
        self.item_content = Attributes("item", inputs.item_dense, inputs.item_categories, tables)
        pooled = config.heads * config.history_width
        if config.heads:
            self.past = tables("item_history", inputs.items, config.history_width)
            self.pool = HistoryPool(inputs.history, inputs.events, config.heads)
            self.taste = nn.Linear(pooled, factors, bias=False)
        self.output = nn.Parameter(torch.ones(factors))  # the last layer's weights of GMF
        self.user_half = nn.Linear(width + self.user_content.width + pooled + inputs.context, first)
        self.item_half = nn.Linear(width + self.item_content.width, first, bias=False)
        self.layers = dense_layers(config.hidden, config.dropout, out=1)

    def removable_neurons(self) -> list[Hidden]:
        """The neurons of the first layer, which is in two halves; `dense_layers` has the others."""
        return [Hidden(("user_half", "item_half"), "layers")]

    def user_rows(self, users: Tensor) -> Tensor:
        """GMF's embedding, the MLP's, and the user's content."""
        content = self.user_content(self.user_dense[users], self.user_category[users])
        return torch.cat([self.users.lookup(users), content], -1)

    def history_rows(self, items: Tensor) -> Tensor:
        """An embedding of its own for what was done, apart from what is offered."""
        return self.past.lookup(items) if self.config.heads else super().history_rows(items)

    def item_rows(self, items: Tensor) -> Tensor:
        """GMF's embedding, the item's half of the first dense layer, and the item's bias."""
        factors, width = self.config.factors, self.config.width
        gmf, mlp, bias = torch.split(self.items.lookup(items), [factors, width, 1], -1)
        content = self.item_content(self.item_dense[items], self.item_category[items])
        return torch.cat([gmf, self.item_half(torch.cat([mlp, content], -1)), bias], -1)

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """GMF's user vector times its output weights, a 1 for the item's bias; half of the first layer."""
        factors = self.config.factors
        gmf, about = user_rows[:, :factors], user_rows[:, factors:]
        if self.config.heads:
            pooled = self.pool(history_rows, history)
            gmf = gmf + self.taste(pooled)
            about = torch.cat([about, pooled], 1)
        half = self.user_half(torch.cat([about, context], 1))
        return torch.cat([gmf * self.output, half], 1)

    def score(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        """Inner product of the GMF parts, plus the MLP's remaining layers, plus the item's bias."""
        factors = self.config.factors
        # A product and a sum: the gradient of so thin a matmul takes twice as long.
        product = (item_rows[..., :factors] * user_state[:, None, :factors]).sum(-1)
        deep: Tensor = self.layers(user_state[:, factors:].unsqueeze(1) + item_rows[..., factors:-1])
        return product + deep.squeeze(-1) + item_rows[..., -1]
