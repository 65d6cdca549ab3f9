"""Which of several values of an id holds: the latest in time, and of equal times the later row's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

_MARK = " \x1ftime"  # no header has it


def time_of(column: str) -> str:
    """Name of the column with the times of another one's values."""
    return column + _MARK


def attributes_of(columns: Sequence[str], frame: pl.DataFrame) -> list[str]:
    """Those of some columns that a frame has."""
    return [column for column in columns if column in frame.columns]


def latest_rows(
    codes: npt.NDArray[np.int64], present: npt.NDArray[np.bool_], count: int
) -> npt.NDArray[np.int64]:
    """(count,) the last of the N rows that is present of each code, -1 where none is.

    Args:
        codes: (N,) below `count`, of rows that are sorted by time.
        present: (N,) rows that have a value.
        count: how many codes there are.
    """
    rows = np.full(count, -1)
    chosen = np.flatnonzero(present)
    np.maximum.at(rows, codes[chosen], chosen)
    return rows


def merge_latest(frame: pl.DataFrame, key: str, columns: Sequence[str]) -> pl.DataFrame:
    """One row for each value of `key`, in the order of first occurrence, with the latest of each column.

    Args:
        frame: rows in the order of the input, with a column `time_of(c)` for each c.
        key: name of the column of ids.
        columns: those that are wanted; some may be absent.
    """
    merged = frame.select(key).unique(maintain_order=True)
    for column in columns:
        if column in frame.columns:
            time = time_of(column)
            values = frame.select(key, column, time).drop_nulls(column).sort(time, maintain_order=True)
            latest = values.unique(key, keep="last", maintain_order=True)
            merged = merged.join(latest, on=key, how="left", maintain_order="left")
    return merged
