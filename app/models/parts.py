"""Pieces that several models share: content vectors, history pooling, dense layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.models.base import History
from app.models.dropout import Dropout
from app.tables.base import Tables

_NO_EVENT = -1e30  # logit of padding: finite, so that a history without events gives no NaN


def category_width(rows: int) -> int:
    """Floats that a category of `rows` values gets: grows with the root, at most 16."""
    return min(16, max(2, math.isqrt(rows)))


class Attributes(nn.Module):
    """Content features as one vector: the dense ones, and small tables for the categories.

    Args:
        name: "item" or "user", at the end of the tables' names.
        dense: F, floats of the dense features.
        categories: rows of each category's vocabulary, row 0 unknown.
    """

    def __init__(self, name: str, dense: int, categories: Sequence[int], tables: Tables) -> None:
        super().__init__()
        widths = [category_width(rows) for rows in categories]
        self.tables = nn.ModuleList(
            tables(f"category_{k}_of_{name}", rows, width)
            for k, (rows, width) in enumerate(zip(categories, widths, strict=True))
        )
        self.width = dense + sum(widths)

    def forward(self, dense: Tensor, category: Tensor) -> Tensor:
        """The features (…, F) float32 and (…, K) int64 of ids as vectors (…, width)."""
        looked_up = [table.lookup(category[..., k]) for k, table in enumerate(self.tables)]  # type: ignore[operator]
        return torch.cat([dense, *looked_up], -1)


def event_weights(logits: Tensor, mask: Tensor) -> Tensor:
    """(…, L) logits and mask -> (…, L): softmax over the real events, where `mask` is 1.

    The weights sum to 1 wherever there is an event, however small the logits are; else all are 0.
    """
    logits = torch.where(mask > 0, logits, _NO_EVENT)
    largest = logits.detach().amax(-1, keepdim=True)  # a shift, which the softmax does not feel
    weights = (logits - largest).exp() * mask
    # The largest event weighs 1 before the division: less than 1 in all means that there is none.
    return weights / weights.sum(-1, keepdim=True).clamp(min=1)


class HistoryPool(nn.Module):
    """Weighted means of a history, one a head; learned weights of position, event type and age.

    A head that weighs the last events alone sees the mood, one that weighs all alike the
    taste; both cost one product of (heads, L) with (L, D). No event gives zeros.
    """

    def __init__(self, length: int, events: int, heads: int) -> None:
        super().__init__()
        self.events = events
        # Heads start with different memories: a flat one, then ever shorter ones.
        back = torch.arange(length - 1, -1, -1, dtype=torch.float32) / length
        self.position = nn.Parameter(-torch.arange(heads, dtype=torch.float32)[:, None] * 2 * back)
        self.event = nn.Parameter(torch.zeros(events, heads))
        self.age = nn.Parameter(torch.zeros(heads))

    def forward(self, rows: Tensor, history: History) -> Tensor:
        """Pool the rows (B, L, D) of the history's items into (B, heads * D)."""
        # A product with one-hot types, where a look-up would give L x heads scattered gradients.
        types = torch.arange(self.events, device=rows.device)
        event = (history.event.unsqueeze(-1) == types).to(rows.dtype) @ self.event  # (B, L, heads)
        logits = self.position + (event - history.age.unsqueeze(-1) * self.age).transpose(1, 2)
        weights = event_weights(logits, history.mask.unsqueeze(1))
        return torch.matmul(weights.to(rows.dtype), rows).flatten(1)


class HistorySimilarity(nn.Module):
    """How near a candidate is to the items of a history, each event weighed by position, type and age.

    log(1 + sum over events of exp(sharpness (cosine - 1) + weight)): learned item-to-item
    similarity (after He et al. 2018, "NAIS"), in which an item met before has cosine 1 from the
    start, so that buying again need not be learned. No event gives 0.
    """

    def __init__(self, length: int, events: int, width: int) -> None:
        super().__init__()
        self.length, self.events, self.width = length, events, width
        self.position = nn.Parameter(torch.zeros(length))
        self.event = nn.Parameter(torch.zeros(events))
        self.age = nn.Parameter(torch.zeros(()))
        self.sharpness = nn.Parameter(torch.tensor(8.0))
        self.scale = nn.Parameter(torch.ones(()))

    def item(self, embedding: Tensor) -> Tensor:
        """The candidate's direction (…, D), for its row; entries are about 1 so that it quantises well."""
        return F.normalize(embedding, dim=-1) * math.sqrt(self.width)

    def state(self, rows: Tensor, history: History) -> Tensor:
        """Directions of the history's items and their weights, (B, L * D + L), from rows (B, L, D)."""
        types = torch.arange(self.events, device=rows.device)
        event = (history.event.unsqueeze(-1) == types).to(rows.dtype) @ self.event
        weight = self.position + event - history.age * self.age - self.sharpness
        weight = weight * history.mask - 1e4 * (1 - history.mask)
        directions = F.normalize(rows, dim=-1) * (self.sharpness / math.sqrt(self.width))
        return torch.cat([directions.flatten(1), weight], 1)

    def forward(self, state: Tensor, items: Tensor) -> Tensor:
        """Nearness (B, C) of a state (B, L * D + L) and candidates (B, C, D)."""
        directions, weight = state[:, : -self.length], state[:, -self.length :]
        directions = directions.reshape(-1, self.length, self.width)
        near = torch.matmul(items, directions.transpose(1, 2)) + weight.unsqueeze(1)  # (B, C, L)
        return self.scale * torch.log1p(near.exp().sum(2))


def dense_layers(widths: Sequence[int], dropout: float, *, out: int | None = None) -> nn.Sequential:
    """ReLU, dropout and a linear layer for each step of `widths`; then a linear one to `out` if given.

    Starts with the ReLU, because the layer before it is split between user and item.
    """
    layers: list[nn.Module] = []
    for before, after in zip(widths, [*widths[1:], out], strict=True):
        layers.append(nn.ReLU())
        if dropout:
            layers.append(Dropout(dropout))
        if after is not None:
            layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)
