"""A hashed table: fewer rows than ids, each id the sum of two rows picked by two hashes.

Two hashes make full collisions rare (Serrà and Karatzoglou 2017, "Getting deep recommenders
fit", hash embeddings; the k = 2 case without importance weights).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.tables.base import Table

_PRIMES = (2_654_435_761, 805_459_861)  # odd multipliers of multiplicative hashing


class HashedTable(Table):
    """`buckets` rows shared by all ids; id 0 (unknown) keeps row 0 to itself."""

    def __init__(self, buckets: int, width: int, *, sparse: bool = True, std: float = 0.01) -> None:
        super().__init__()
        self.embedding = nn.Embedding(buckets + 1, width, sparse=sparse)
        nn.init.normal_(self.embedding.weight, std=std)

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of `ids` (…) as (…, D)."""
        first, second = (self.embedding(self._bucket(ids, prime)) for prime in _PRIMES)
        total: Tensor = first + second
        return total

    def _bucket(self, ids: Tensor, prime: int) -> Tensor:
        mixed = (ids * prime) % (1 << 32)
        bucket = (mixed >> 7) % (self.embedding.num_embeddings - 1) + 1
        return torch.where(ids == 0, 0, bucket)
