"""DCN-V2: learned products of features beside dense layers (Wang et al. 2021, "DCN V2: Improved deep & cross
network and practical lessons for web-scale learning to rank systems").

A cross layer multiplies the features x0, number by number, with a linear map of what came before:
x' = x0 * (W x + b) + x, so that l layers hold products of up to l + 1 features. W is full, or of low rank
(U V), or a mixture of experts of low rank, weighed by a gate.

x0 is the user's id, attributes, pooled history and context, then the item's id and attributes. The first
maps are linear in x0, so the user's half of them runs once a request.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from app.models.base import Content, History, Inputs, Loss, Model, ModelConfig
from app.models.dropout import Dropout
from app.models.parts import Attributes, HistoryPool, dense_layers
from app.tables.base import Tables


class DcnConfig(ModelConfig):
    """Hyperparameters of the cross layers and of the dense ones."""

    loss: Loss = "bce"
    width: int = Field(16, ge=1, description="floats of a user or item embedding")
    crosses: int = Field(2, ge=1, description="cross layers")
    rank: int = Field(0, ge=0, description="rank of their matrices; 0: full")
    experts: int = Field(1, ge=1, description="matrices of low rank that a gate mixes, in each cross layer")
    structure: Literal["parallel", "stacked"] = Field(
        "parallel", description="the dense layers see the features, or what the cross layers make of them"
    )
    hidden: list[int] = Field(default=[128, 64], min_length=1, description="widths of the dense layers")
    heads: int = Field(2, ge=0, description="ways to weigh the history; 0: no history")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the dense inputs left out in training")


class Cross(nn.Module):
    """x0 * (a map of x) + x, given the first, linear step of the map.

    Attributes:
        projected: floats of that step: D with a full matrix, else `rank` an expert, and the gates' logits.
    """

    def __init__(self, width: int, rank: int, experts: int) -> None:
        super().__init__()
        self.rank, self.experts = rank, experts
        self.projected = width if not rank else experts * rank + (experts if experts > 1 else 0)
        if rank:
            self.expand = nn.Parameter(torch.empty(experts, rank, width))
            nn.init.xavier_normal_(self.expand)
            self.bias = nn.Parameter(torch.zeros(width))
        if experts > 1:
            self.inner = nn.Parameter(torch.empty(experts, rank, rank))
            nn.init.xavier_normal_(self.inner)

    def forward(self, x0: Tensor, x: Tensor, projected: Tensor) -> Tensor:
        """The next x (…, D) from x0 and x (…, D) and the projection of x (…, projected)."""
        if not self.rank:
            return x0 * projected + x
        low = projected[..., : self.experts * self.rank]
        if self.experts == 1:
            return x0 * (low @ self.expand[0] + self.bias) + x
        low = low.reshape(*low.shape[:-1], self.experts, self.rank)
        low = torch.einsum("...er,ers->...es", low.tanh(), self.inner).tanh()
        gate = projected[..., self.experts * self.rank :].softmax(-1)
        mixed = torch.einsum("...er,erd->...d", low * gate.unsqueeze(-1), self.expand)
        return x0 * (mixed + self.bias) + x


class Dcn(Model):
    """Cross layers and dense layers over all features of user, history, context and item."""

    Config = DcnConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "width": [8, 16, 32],
        "crosses": [1, 2, 3],
        "rank": [0, 16, 32],
        "structure": ["parallel", "stacked"],
        "hidden": [[64], [128, 64], [256, 128]],
        "heads": [0, 1, 2, 4],
        "dropout": (0.0, 0.5),
    }
    config: DcnConfig

    def __init__(self, config: DcnConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        self.users = tables("user", inputs.users, config.width)
        self.items = tables("item", inputs.items, config.width)
        self.user_content = Attributes("user", inputs.user_dense, inputs.user_categories, tables)
        self.item_content = Attributes("item", inputs.item_dense, inputs.item_categories, tables)
        self.pool = HistoryPool(inputs.history, inputs.events, config.heads) if config.heads else None
        self.about_user = config.width * (1 + config.heads) + self.user_content.width + inputs.context
        about_item = config.width + self.item_content.width
        width, deep = self.about_user + about_item, config.hidden[0]
        experts = config.experts if config.rank else 1
        crosses = [Cross(width, config.rank, experts) for _ in range(config.crosses)]
        self.crosses = nn.ModuleList(crosses)
        self.projections = nn.ModuleList(nn.Linear(width, cross.projected) for cross in crosses[1:])
        # The first cross layer and, in parallel to it, the first dense layer: in two halves.
        self.split = [crosses[0].projected, deep if config.structure == "parallel" else 0]
        self.user_half = nn.Linear(self.about_user, sum(self.split))
        self.item_half = nn.Linear(about_item, sum(self.split), bias=False)
        self.stacked = nn.Linear(width, deep) if config.structure == "stacked" else None
        self.layers = dense_layers(config.hidden, config.dropout, out=1)
        self.output = nn.Linear(width, 1, bias=False) if config.structure == "parallel" else None
        self.dropout = Dropout(config.dropout)

    def user_rows(self, users: Tensor) -> Tensor:
        """Embedding and content of a user."""
        content = self.user_content(self.user_dense[users], self.user_category[users])
        return torch.cat([self.users.lookup(users), content], -1)

    def history_rows(self, items: Tensor) -> Tensor:
        """Embedding of an item, the same as the candidate's."""
        return self.items.lookup(items) if self.pool is not None else super().history_rows(items)

    def item_rows(self, items: Tensor) -> Tensor:
        """Embedding and content of an item."""
        content = self.item_content(self.item_dense[items], self.item_category[items])
        return torch.cat([self.items.lookup(items), content], -1)

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """The user's half of x0, and of the first maps."""
        pooled = [self.pool(history_rows, history)] if self.pool is not None else []
        about = self.dropout(torch.cat([user_rows, *pooled, context], 1))
        return torch.cat([about, self.user_half(about)], 1)

    def score(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        """Logits of the candidates: what the cross layers and the dense ones add up to."""
        item = self.dropout(item_rows)
        user = user_state[:, None, : self.about_user].expand(-1, item.shape[1], -1)
        x0 = torch.cat([user, item], -1)
        first = user_state[:, None, self.about_user :] + self.item_half(item)
        projected, deep = torch.split(first, self.split, -1)
        x: Tensor = self.crosses[0](x0, x0, projected)
        for cross, projection in zip(list(self.crosses)[1:], self.projections, strict=True):
            x = cross(x0, x, projection(x))
        logits: Tensor = self.layers(deep if self.stacked is None else self.stacked(x))
        if self.output is not None:
            logits = logits + self.output(x)
        return logits.squeeze(-1)
