"""What enters a model of sequences: item vectors, and events with what is known of each.

What layers are made of is in attention_parts.py. Every piece of both keeps the promise of `Model.states`:
what it gives for an event depends on the events up to it alone, and not on how much padding stands in front.
So padding neither is seen by an event nor sees one: it holds the state of an empty history.

Shapes: B users, L events, D floats an event.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, ValidationInfo
from torch import Tensor, nn
from torch.nn import functional as F

from app.models.base import History, Inputs, Model
from app.models.parts import Attributes
from app.tables.base import Tables


def _divides_width(heads: int, info: ValidationInfo) -> int:
    width = info.data.get("width", heads)
    if width % heads:
        raise ValueError(f"width is {width}, which is not a multiple of it")
    return heads


Heads = Annotated[int, Field(ge=1, validate_default=True), AfterValidator(_divides_width)]  # after `width`

# Keys of [train] that suit all of them. The negatives count where the loss is not the softmax over all items:
# they serve all targets of a batch, so that many cost little.
SEQUENCE_TRAINING: dict[str, Any] = {
    "learning_rate": 3e-3,
    "table_optimizer": "same",
    "epochs": 100,
    "patience": 5,
    "negatives": 512,
}


class ItemVectors(nn.Module):
    """Vectors of items, the same in a history and as a candidate: an embedding, and attributes added to it.

    Args:
        attributes: whether content features are added, by a learned linear map.
    """

    def __init__(self, width: int, inputs: Inputs, tables: Tables, *, attributes: bool) -> None:
        super().__init__()
        self.embeddings = tables("item", inputs.items, width)
        self.content: Attributes | None = None
        if attributes and (inputs.item_dense or inputs.item_categories):
            self.content = Attributes("item", inputs.item_dense, inputs.item_categories, tables)
            # As small as the embeddings at first, and without a bias, in which all items would be alike.
            self.project = nn.Linear(self.content.width, width, bias=False)
            nn.init.normal_(self.project.weight, std=0.01)

    def forward(self, model: Model, items: Tensor) -> Tensor:
        """Vectors (…, D) of items (…), with the content features that `model` holds."""
        vectors = self.embeddings.lookup(items)
        if self.content is None:
            return vectors
        content = self.content(model.item_dense[items], model.item_category[items])
        added: Tensor = self.project(content)
        return vectors + added


class EventInput(nn.Module):
    """A history as the input of a network: vectors of its items, and what else is known of each event.

    Items are multiplied by the root of D: their embeddings are small, and would drown in what is added.

    Args:
        start: whether a learned vector stands where there is padding, for a history without events; else 0.
        positions: whether each event's number, counted from the first in the window, has a vector.
        gaps: whether the time since the event before is read.
    """

    def __init__(
        self, width: int, inputs: Inputs, *, start: bool = True, positions: bool = False, gaps: bool = False
    ) -> None:
        super().__init__()
        self.start = _small(1, width) if start else None
        self.position = _small(inputs.history, width) if positions else None
        # With a single type of event there is nothing to tell.
        self.event = _small(inputs.events, width) if inputs.events > 2 else None
        self.gap = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width)) if gaps else None

    def forward(self, rows: Tensor, history: History) -> Tensor:
        """(B, L, D) from the rows (B, L, D) of the items."""
        mask, rows = history.mask, rows * math.sqrt(rows.shape[-1])
        if self.position is not None:
            number = mask.cumsum(1).to(torch.int64) - 1
            rows = rows + F.embedding(number.clamp(0, len(self.position) - 1), self.position)
        if self.event is not None:
            rows = rows + F.embedding(history.event, self.event)
        if self.gap is not None:
            rows = rows + self.gap(history.gap.unsqueeze(-1))
        start = rows.new_zeros(()) if self.start is None else self.start.to(rows.dtype)
        return torch.where(mask.unsqueeze(-1) > 0, rows, start)


def _small(rows: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, width) * 0.02)
