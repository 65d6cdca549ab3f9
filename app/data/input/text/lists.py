"""Fields that list items: lists of numbers, and impressions with labels."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars as pl

LABELLED = r"^(.+)-([01])$"  # as the MIND data set writes impressions: item, and whether it was clicked
_IMPRESSION = re.compile(LABELLED)
_PART = r"[^\s,;|\[\]\"']+"
_NUMBERS = re.compile(r"\[?\s*\d+(\s*[\s,|;]\s*\d+)*\s*\]?")
_SEVERAL = re.compile(r"\d\s*[\s,|;]\s*\d")


def find_lists(sample: pl.DataFrame) -> tuple[str, str]:
    """The layout that a sample of rows as text has, and the column that lists items; events where none does.

    Impressions are lists of ITEM-1 and ITEM-0 alone; lists of items are told from texts by being numbers.
    """
    for column in sample.columns:
        parts = [value.split() for value in sample[column].drop_nulls().to_list()]
        flat = [part for value in parts for part in value]
        labels = {part[-1] for part in flat if _IMPRESSION.fullmatch(part)}
        if max(map(len, parts), default=0) > 1 and len(labels) > 1 and all(map(_IMPRESSION.fullmatch, flat)):
            return "impressions", column
    for column in sample.columns:
        if _lists_numbers(sample[column].drop_nulls().to_list()):
            return "lists", column
    return "events", ""


def _lists_numbers(values: Sequence[str]) -> bool:
    """Whether values are lists of whole numbers of several lengths; dates are of one."""
    if not values or not all(_NUMBERS.fullmatch(value) for value in values):
        return False
    lengths = {len(re.findall(r"\d+", value)) for value in values}
    return max(lengths) > 2 and len(lengths) > 1 and any(_SEVERAL.search(value) for value in values)


def find_parallel(sample: pl.DataFrame, items: str, others: Sequence[str]) -> tuple[str, ...]:
    """The columns among `others` that list a value for each item, in every row of a sample as text."""
    if items not in sample.columns:
        return ()
    counts = as_lists(sample[items], "").list.len()
    if counts.max() in (None, 0, 1):
        return ()
    return tuple(
        c for c in others if c in sample.columns and as_lists(sample[c], "").list.len().equals(counts)
    )


def as_lists(values: pl.Series, delimiter: str) -> pl.Series:
    """A column of lists: those there are, or text cut at a delimiter, or at blanks, commas and bars.

    An empty list is one of null.
    """
    if isinstance(values.dtype, pl.List | pl.Array):
        lists = values.cast(pl.List(values.dtype.inner))
    elif values.dtype != pl.String:
        lists = values.to_frame().select(pl.concat_list(values.name)).to_series()
    elif delimiter:
        lists = values.str.split(delimiter).list.eval(pl.element().filter(pl.element() != ""))
    else:
        lists = values.str.extract_all(_PART)
    empty = pl.Series([[None]], dtype=lists.dtype)
    return (
        pl.select(pl.when(lists.list.len() > 0).then(lists).otherwise(empty)).to_series().alias(values.name)
    )
