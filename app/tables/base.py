"""Embedding tables. Models declare them by name and width; what they are made of is set outside.

One file a kind of table; `kind` in the recipe names the file.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Table(nn.Module):
    """Rows of floats, looked up by id."""

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of `ids` (…) int64 as (…, D) float32."""
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Size of the stored rows, in bytes."""
        return sum(p.numel() * p.element_size() for p in (*self.parameters(), *self.buffers()))


class Tables(Protocol):
    """Makes the tables that a model declares."""

    def __call__(self, name: str, rows: int, width: int) -> Table:
        """A table of `rows` x `width`, row 0 for unknown ids."""
        ...
