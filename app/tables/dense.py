"""A dense table: one row an id."""

from __future__ import annotations

from torch import Tensor, nn

from app.tables.base import Table


class DenseTable(Table):
    """`nn.Embedding` with sparse gradients, so that a step touches only the rows it used."""

    def __init__(self, rows: int, width: int, *, sparse: bool = True, std: float = 0.01) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, width, sparse=sparse)
        nn.init.normal_(self.embedding.weight, std=std)

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of `ids` (…) as (…, D)."""
        found: Tensor = self.embedding(ids)
        return found
