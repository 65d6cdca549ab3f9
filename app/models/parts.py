"""Pieces that several models share: content vectors, history pooling, dense layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from app.models.base import History
from app.tables.base import Tables


def category_width(rows: int) -> int:
    """Floats that a category of `rows` values gets: grows with the root, at most 16."""
    return min(16, max(2, math.isqrt(rows)))


class Attributes(nn.Module):
    """Content features as one vector: the dense ones, and small tables for the categories.

    Args:
        name: "item" or "user", in front of the tables' names.
        dense: F, floats of the dense features.
        categories: rows of each category's vocabulary, row 0 unknown.
    """

    def __init__(self, name: str, dense: int, categories: Sequence[int], tables: Tables) -> None:
        super().__init__()
        widths = [category_width(rows) for rows in categories]
        self.tables = nn.ModuleList(
            tables(f"{name}_category_{k}", rows, width)
            for k, (rows, width) in enumerate(zip(categories, widths, strict=True))
        )
        self.width = dense + sum(widths)

    def forward(self, dense: Tensor, category: Tensor) -> Tensor:
        """(…, F) float32, (…, K) int64 -> (…, width)."""
        looked_up = [table.lookup(category[..., k]) for k, table in enumerate(self.tables)]  # type: ignore[operator]
        return torch.cat([dense, *looked_up], -1)


class HistoryPool(nn.Module):
    """Weighted means of a history, one a head; the weights are learned from place, event type and age.

    A head that weighs the last events alone sees the mood, one that weighs all alike the
    taste; both cost one product of (heads, L) with (L, D). No event gives zeros.
    """

    def __init__(self, length: int, events: int, heads: int) -> None:
        super().__init__()
        self.events = events
        # Heads start with different memories: a flat one, then ever shorter ones.
        back = torch.arange(length - 1, -1, -1, dtype=torch.float32) / length
        self.place = nn.Parameter(-torch.arange(heads, dtype=torch.float32)[:, None] * 2 * back)
        self.event = nn.Parameter(torch.zeros(events, heads))
        self.age = nn.Parameter(torch.zeros(heads))

    def forward(self, rows: Tensor, history: History) -> Tensor:
        """(B, L, D) rows of the history's items -> (B, heads * D)."""
        # A product with one-hot types, where a look-up would give L x heads scattered gradients.
        types = torch.arange(self.events, device=rows.device)
        event = (history.event.unsqueeze(-1) == types).to(rows.dtype) @ self.event  # (B, L, heads)
        logits = self.place + (event - history.age.unsqueeze(-1) * self.age).transpose(1, 2)
        weights = (logits - logits.amax(2, keepdim=True)).exp() * history.mask.unsqueeze(1)
        weights = weights / weights.sum(2, keepdim=True).clamp(min=1e-6)
        return torch.matmul(weights.to(rows.dtype), rows).flatten(1)


def dense_layers(widths: Sequence[int], dropout: float, *, out: int | None = None) -> nn.Sequential:
    """ReLU, dropout and a linear layer for each step of `widths`; then a linear one to `out` if given.

    Starts with the ReLU, because the layer before it is split between user and item.
    """
    layers: list[nn.Module] = []
    for before, after in zip(widths, [*widths[1:], out], strict=True):
        layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
        if after is not None:
            layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)
