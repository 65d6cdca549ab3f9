"""The rows of all items: a block at a time, and with those of new items behind them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from app.bundle.format.layout import Array
from app.tables.rows import Rows

BLOCK = 1 << 15  # items scored in one go
MATRIX_BYTES = 128 << 20  # item rows up to this size are kept as floats: decoding int8 doubles a search


class Blocks:
    """The rows of all items as floats, a block at a time; kept where they are few and no product codes.

    A block of codes is put together for the moment in which it is scored.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[tuple[int, Array]]:
        matrix = self._matrix
        for start in range(0, len(self.rows), BLOCK):
            stop = start + BLOCK
            yield start, self.rows.block(start, stop) if matrix is None else matrix[start:stop]

    @cached_property
    def norms(self) -> Array:
        """(items,) length of each row."""
        return np.concatenate([np.linalg.norm(block, axis=1) for _, block in self])

    @cached_property
    def _matrix(self) -> Array | None:
        few = self.rows.codes is None and len(self.rows) * self.rows.width * 4 <= MATRIX_BYTES
        return self.rows.all() if few else None


class ExtendedRows:
    """Rows of a bundle, and behind them those of new items, (N, D) float32 in memory."""

    def __init__(self, base: Rows, added: Array) -> None:
        self.base, self.added, self.width = base, added, base.width

    def gather(self, ids: Array) -> Array:
        """Rows (…, D) float32 of ids (…), those of new items following the bundle's."""
        positions = np.asarray(ids) - len(self.base)
        new = positions >= 0
        if not new.any():
            return self.base.gather(ids)
        rows = self.base.gather(np.where(new, 0, ids))
        rows[new] = self.added[positions[new]]
        return rows
