"""A dense table: one row an id."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from app.tables.base import Table


class DenseTable(Table):
    """`nn.Embedding` with sparse gradients, so that a step touches only the rows it used."""

    def __init__(self, rows: int, width: int, *, sparse: bool = True, std: float = 0.01) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, width, sparse=sparse)
        nn.init.normal_(self.embedding.weight, std=std)
        self.embedding.weight.data[0] = 0.0

    @classmethod
    def create(cls, rows: int, width: int, options: Any) -> Table:
        """A row for each id."""
        return cls(rows, width)

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of `ids` (…) as (…, D)."""
        rows: Tensor = self.embedding(ids)
        return rows

    def set_unknown(self, row: Tensor) -> None:
        """Make `row` (D,) the row of id 0."""
        self.embedding.weight.data[0] = row
