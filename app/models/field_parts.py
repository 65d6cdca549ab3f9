"""Fields of one width, for models that multiply every pair of features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from app.tables.base import Tables


class Fields(nn.Module):
    """The id and each category of a user or an item, looked up in tables of one width.

    Args:
        name: "user" or "item".
        rows: of the ids, row 0 unknown.
        categories: rows of each category's vocabulary, row 0 unknown.
        width: D, floats of a field.
    """

    def __init__(self, name: str, rows: int, categories: Sequence[int], width: int, tables: Tables) -> None:
        super().__init__()
        self.ids = tables(name, rows, width)
        self.categories = nn.ModuleList(
            tables(f"category_{k}_of_{name}", count, width) for k, count in enumerate(categories)
        )
        self.count = 1 + len(categories)

    def forward(self, ids: Tensor, category: Tensor) -> Tensor:
        """Ids (…) and their categories (…, K) as (…, (1 + K) * D), the id first."""
        looked_up = [table.lookup(category[..., k]) for k, table in enumerate(self.categories)]  # type: ignore[operator]
        return torch.cat([self.ids.lookup(ids), *looked_up], -1)
