"""Consecutive rows as they were read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a split, with the columns as the recipe calls them.

    Where a row of a file lists several items it becomes as many rows, which are numbered like others.

    Attributes:
        frame: the N readable rows.
        rows: (N,) position of each in the split, from 0; unreadable rows are counted.
        bad: position and text of the unreadable rows.
        origins: (N,) position among the rows of the file from the split's start; `rows` unless unfolded.
        bad_origins: the same of the unreadable rows.
        lines: rows of the file that the piece was read from.
    """

    frame: pl.DataFrame
    rows: Positions
    bad: list[tuple[int, str]]
    origins: Positions
    bad_origins: list[int]
    lines: int

    @property
    def count(self) -> int:
        """Rows, unreadable ones included."""
        return len(self.rows) + len(self.bad)


def numbered(frame: pl.DataFrame, first: int, bad: list[tuple[int, str]]) -> Piece:
    """A piece of rows from position `first` on, readable all but the ones in `bad`, in their order."""
    rows = np.arange(first, first + len(frame) + len(bad))
    rows = np.delete(rows, [row - first for row, _ in bad]) if bad else rows
    return Piece(frame, rows, bad, rows, [row for row, _ in bad], len(frame) + len(bad))
