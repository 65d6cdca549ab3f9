"""A row for each item that a row lists: in one field, over the rest of a line, or as impressions."""

from __future__ import annotations

import json

import numpy as np
import polars as pl

from app.data.input.form.form import Form
from app.data.input.text.lists import LABELLED, as_lists
from app.data.input.text.piece import Piece

CLICK, IMPRESSION = "click", "impression"

_ORIGIN = "\0origin"


def unfold(piece: Piece, form: Form, event_column: str, first: int) -> Piece:
    """A row for each item that a row lists, in their order; rows are numbered from `first` on.

    Columns that list a value for each item are unfolded with it, the others repeated. A row that lists
    nothing stays, without an item. Impressions get the event type click or impression, or none where an
    item has no label.
    """
    frame, column = piece.frame, form.items
    if column not in frame.columns:
        return piece
    items = as_lists(frame[column], form.delimiter if form.ragged else "")
    lists = {column: items}
    for other in frame.columns:
        if other != column and _is_parallel(other, frame, form):
            lists[other] = as_lists(frame[other], "")
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


def _labelled(frame: pl.DataFrame, items: str, event_column: str) -> pl.DataFrame:
    text = pl.col(items).str
    clicked = text.extract(LABELLED, 2)
    event = pl.when(clicked == "1").then(pl.lit(CLICK)).when(clicked == "0").then(pl.lit(IMPRESSION))
    item = pl.coalesce(text.extract(LABELLED, 1), pl.col(items))
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
