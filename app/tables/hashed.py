"""Hashed tables: fewer rows than ids, each id the sum of two rows picked by two hashes.

Two hashes make full collisions rare (Serrà and Karatzoglou 2017, "Getting deep recommenders
fit", hash embeddings; the k = 2 case without importance weights).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from app.tables.base import Table, TableOptions
from app.tables.dense import DenseTable

_MULTIPLIERS = (2_654_435_761, 805_459_861)  # odd, of the two hashes
_LOW_32 = (1 << 32) - 1


class HashedOptions(TableOptions):
    """Options of a hashed table."""

    buckets: int = Field(ge=1, description="rows that all ids share")


class HashedTable(Table):
    """`buckets` rows shared by all ids; id 0 (unknown) keeps row 0 to itself."""

    Options = HashedOptions

    def __init__(self, buckets: int, width: int, *, sparse: bool = True, std: float = 0.01) -> None:
        super().__init__()
        self.embedding = nn.Embedding(buckets + 1, width, sparse=sparse)
        nn.init.normal_(self.embedding.weight, std=std)
        self.embedding.weight.data[0] = 0.0

    @classmethod
    def create(cls, rows: int, width: int, options: HashedOptions) -> Table:
        """A hashed table, or a dense one where that has no more rows."""
        return cls(options.buckets, width) if rows > options.buckets else DenseTable(rows, width)

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of `ids` (…) as (…, D)."""
        total: Tensor = self.embedding(self.buckets_of(ids)).sum(0)
        return total

    def set_unknown(self, row: Tensor) -> None:
        """Make `row` (D,) the row of id 0, which is looked up twice."""
        self.embedding.weight.data[0] = row / 2

    def buckets_of(self, ids: Tensor) -> Tensor:
        """The two rows (2, …) of each id, from 1 on; both are 0 for id 0.

        Multiply and shift: the high bits of a product depend on all bits of the id, the low ones on
        its low bits alone. Folding the high half in and multiplying once more breaks up the lattice
        that a single product makes of consecutive ids.
        """
        return torch.stack([self._bucket(ids, multiplier) for multiplier in _MULTIPLIERS])

    def _bucket(self, ids: Tensor, multiplier: int) -> Tensor:
        mixed = (ids * multiplier) & _LOW_32
        mixed = ((mixed ^ (mixed >> 16)) * multiplier) & _LOW_32
        bucket = ((mixed * (self.embedding.num_embeddings - 1)) >> 32) + 1
        return torch.where(ids == 0, 0, bucket)
