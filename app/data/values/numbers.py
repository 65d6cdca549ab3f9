"""Cells that should be numbers and are none."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars as pl

from app.data.values.text import plain, point, text_of

_COMMA = re.compile(r"[-+]?\d[\d.]*,\d+|[-+]?,\d+")


def strange(series: pl.Series, numbers: pl.Series, words: Sequence[str]) -> pl.Series:
    """(N,) bool: cells that hold something, no word for what is missing, and no number.

    Args:
        series: the cells.
        numbers: what `number_of` makes of them.
        words: texts that mean that a value is missing.
    """
    lacking = numbers.is_null()
    cells = text_of(series.filter(lacking), words)
    endless = cells.cast(pl.Float64, strict=False).is_finite().not_().fill_null(False)  # NaN and infinity
    return lacking.scatter(lacking.arg_true(), cells.is_not_null() & ~endless)


def number_texts(series: pl.Series, decimal: str) -> pl.Series:
    """Cells of a column of numbers as text that every reader of numbers takes: 1 and 0 for true and false."""
    if series.dtype == pl.Boolean:
        return series.cast(pl.Int8).cast(pl.String)
    series = plain(series)
    return point(series) if decimal == "," and series.dtype == pl.String else text_of(series)


def has_comma(value: str) -> bool:
    """Whether a text is a number with a decimal comma, as "12,50"."""
    return _COMMA.fullmatch(value.strip()) is not None
