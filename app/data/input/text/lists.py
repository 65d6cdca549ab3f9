"""Rows that list items: lists in one field or over the rest of a line, and impressions with labels."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from app.data.input.text.piece import Piece

if TYPE_CHECKING:
    from app.data.input.form.form import Form

CLICK, IMPRESSION = "click", "impression"

_LABELLED = r"^(.+)-([01])$"  # as the MIND data set writes impressions: item, and whether it was clicked
_IMPRESSION = re.compile(_LABELLED)
_PART = r"[^\s,;|\[\]\"']+"
_NUMBERS = re.compile(r"\[?\s*\d+(\s*[\s,|;]\s*\d+)*\s*\]?")
_ORIGIN = "\0origin"
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
    counts = _as_lists(sample[items], "").list.len()
    if counts.max() in (None, 0, 1):
        return ()
    return tuple(
        c for c in others if c in sample.columns and _as_lists(sample[c], "").list.len().equals(counts)
    )


def unfold(piece: Piece, form: Form, event_column: str, first: int) -> Piece:
    """A row for each item that a row lists, in their order; rows are numbered from `first` on.

    Columns that list a value for each item are unfolded with it, the others repeated. A row that lists
    nothing stays, without an item. Impressions get the event type click or impression, or none where an
    item has no label.
    """
    frame, column = piece.frame, form.items
    if column not in frame.columns:
        return piece
    items = _as_lists(frame[column], form.delimiter if form.ragged else "")
    lists = {column: items}
    for other in frame.columns:
        if other != column and _is_parallel(other, frame, form):
            lists[other] = _as_lists(frame[other], "")
    uneven = pl.Series(np.zeros(len(frame), bool))
    for values in lists.values():
        uneven |= values.list.len() != items.list.len()
    bad = list(zip(piece.bad_origins, (text for _, text in piece.bad), strict=True))
    bad += [
        (int(piece.origins[i]), json.dumps(frame.row(i), default=str)) for i in uneven.arg_true().to_list()
    ]
    kept = frame.with_columns(lists.values()).with_columns(pl.Series(_ORIGIN, piece.origins)).filter(~uneven)
    kept = kept.explode(*lists)
    if form.layout == "impressions" and event_column:
        kept = _labelled(kept, column, event_column)
    return _numbered(kept.drop(_ORIGIN), kept[_ORIGIN].to_numpy(), sorted(bad), first, piece.lines)


def _is_parallel(column: str, frame: pl.DataFrame, form: Form) -> bool:
    """Whether a column lists a value for each item: known to, or of the same list of objects."""
    if column in form.parallel:
        return True
    parent, dot, _ = form.items.rpartition(".")
    return isinstance(frame.schema[column], pl.List) and bool(dot) and column.startswith(f"{parent}.")


def _as_lists(values: pl.Series, delimiter: str) -> pl.Series:
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


def _labelled(frame: pl.DataFrame, items: str, event_column: str) -> pl.DataFrame:
    text = pl.col(items).str
    clicked = text.extract(_LABELLED, 2)
    event = pl.when(clicked == "1").then(pl.lit(CLICK)).when(clicked == "0").then(pl.lit(IMPRESSION))
    item = pl.coalesce(text.extract(_LABELLED, 1), pl.col(items))
    return frame.with_columns(event.alias(event_column), item.alias(items))


def _numbered(
    frame: pl.DataFrame, origins: np.ndarray, bad: list[tuple[int, str]], first: int, lines: int
) -> Piece:
    """Number the rows and the unreadable ones among them in the order of the file."""
    bad_origins = np.array([row for row, _ in bad], np.int64)
    order = np.argsort(np.concatenate([origins, bad_origins]), kind="stable")
    rows = np.empty(len(order), np.int64)
    rows[order] = np.arange(first, first + len(order))
    of_bad = rows[len(frame) :].tolist()
    texts = [(row, text) for row, (_, text) in zip(of_bad, bad, strict=True)]
    return Piece(frame, rows[: len(frame)], texts, origins, bad_origins.tolist(), lines)
