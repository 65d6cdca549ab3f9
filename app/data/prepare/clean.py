"""Row-wise cleaning: what each row says, and the first reason not to keep it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from app.data.input.reading import Piece
from app.data.prepare.plan import Plan
from app.data.values.text import blank, encode, lists_of, number_of, text_of
from app.data.values.times import times_of

Array = npt.NDArray[Any]
MISSING_EVENT = "missing"  # the event type that the policy 'category' gives


@dataclass
class Note:
    """Values of a column that could not be used: how many, of how many, and the first."""

    bad: int = 0
    good: int = 0
    value: str = ""
    row: int = -1


@dataclass
class Cleaned:
    """The N rows of a piece as arrays; `reason` (N,) is 0 where a row is kept.

    Ids and event types are positions in texts; where `reason` is not 0 they may be -1.
    """

    reason: Array
    user: Array
    user_texts: pl.Series
    item: Array
    item_texts: pl.Series
    time: Array  # (N,) microseconds; zeros where the order of rows is the order in time
    event: Array
    event_texts: list[str]
    value: Array  # (N,) float32, NaN where the median is to fill
    outliers: list[Array]  # (N,) float64 each, NaN where missing
    frame: pl.DataFrame  # original columns, constants filled in
    negatives: pl.Series | None = None
    notes: dict[str, Note] = field(default_factory=dict)


def clean(piece: Piece, plan: Plan) -> Cleaned:
    """Judge every readable row of a piece on its own."""
    data, frame = plan.data, _fill_constants(piece.frame, plan)
    reason = np.zeros(len(frame), np.uint8)
    notes: dict[str, Note] = {}

    def reject(bad: Array, name: str) -> None:
        reason[(reason == 0) & bad] = plan.code(name)

    user, user_texts = encode(frame[data.user])
    item, item_texts = encode(frame[data.item])
    reject(user < 0, "missing_user")
    reject(item < 0, "missing_item")
    event, event_texts = _events(frame, plan)
    value, lacking, notes["value"] = _values(frame, plan, piece)
    time, good = _times(frame, plan)
    _reject_missing(frame, plan, event, lacking, ~good, reject)
    if plan.where:
        reject(~plan.where.keep(frame).to_numpy(), "filtered")
    reject(_unknown(event, event_texts, plan), "unknown_event")
    late = ~good | (time < plan.earliest) | (time > plan.latest)
    notes["timestamp"] = _note(frame, data.timestamp, late & (reason == 0), piece)
    reject(late, "bad_time")
    listed = plan.split.negatives
    return Cleaned(
        reason, user, user_texts, item, item_texts, time, event, event_texts, value,
        [_numbers(frame, column) for column in plan.outlier_columns], frame,
        lists_of(frame[listed]) if listed and listed in frame.columns else None, notes,
    )  # fmt: skip


def _fill_constants(frame: pl.DataFrame, plan: Plan) -> pl.DataFrame:
    fills = {
        column: policy.removeprefix("constant:") if ":" in policy else MISSING_EVENT
        for column, policy in plan.data.missing.items()
        if column in frame.columns
        and (policy.startswith("constant:") or (policy == "category" and column == plan.data.event))
    }
    filled = [text_of(frame[column]).fill_null(text) for column, text in fills.items()]
    return frame.with_columns(filled) if fills else frame


def _events(frame: pl.DataFrame, plan: Plan) -> tuple[Array, list[str]]:
    """Positions of the event types; a file without the column has the first positive one."""
    data = plan.data
    if data.event and data.event in frame.columns:
        codes, texts = encode(frame[data.event])
        return codes, texts.to_list()
    default = [*data.positive, *data.event_types, "event"][0]
    return np.zeros(len(frame), np.int64), [default]


def _unknown(event: Array, texts: list[str], plan: Plan) -> Array:
    known = set(plan.data.event_types)
    bad = np.array([bool(known) and text not in known for text in texts] + [False])  # -1: missing
    return bad[event]


def _numbers(frame: pl.DataFrame, column: str) -> Array:
    if column not in frame.columns:
        return np.full(len(frame), np.nan)
    return number_of(frame[column]).to_numpy().astype(np.float64)


def _values(frame: pl.DataFrame, plan: Plan, piece: Piece) -> tuple[Array, Array, Note]:
    """Values (N,) float32, which of them are missing, and a note on those that are no numbers."""
    column = plan.data.value
    if not column or column not in frame.columns:
        return np.ones(len(frame), np.float32), np.zeros(len(frame), bool), Note()
    numbers = _numbers(frame, column)
    lacking = np.isnan(numbers)
    text = text_of(frame[column]) if lacking.any() else frame[column]
    strange = (text.is_not_null() & text.cast(pl.Float64, strict=False).is_null()).to_numpy()
    note = _note(frame, column, lacking & strange, piece)
    note.good = int((~lacking).sum())
    policy = plan.data.missing.get(column, "drop")
    if policy.startswith("constant:"):
        numbers = np.where(lacking, float(policy.removeprefix("constant:")), numbers)
    if policy != "drop":
        lacking = np.zeros_like(lacking)
    return numbers.astype(np.float32), lacking, note


def _note(frame: pl.DataFrame, column: str, bad: Array, piece: Piece) -> Note:
    if not bad.any() or not column:
        return Note()
    first = int(bad.argmax())
    return Note(int(bad.sum()), 0, str(frame[column][first])[:80], int(piece.rows[first]))


def _reject_missing(
    frame: pl.DataFrame, plan: Plan, event: Array, lacking: Array, timeless: Array, reject: Any
) -> None:
    data = plan.data
    if data.timestamp:
        absent = np.zeros(len(frame), bool)
        absent[timeless] = blank(frame[data.timestamp].filter(pl.Series(timeless))).to_numpy()
        reject(absent, "missing_timestamp")
    if data.event:
        reject(event < 0, "missing_event")
    if data.value:
        reject(lacking, "missing_value")
    for column in plan.dropped:
        if column in frame.columns:
            reject(blank(frame[column]).to_numpy(), f"missing_{column}")


def _times(frame: pl.DataFrame, plan: Plan) -> tuple[Array, Array]:
    if plan.data.timestamp:
        return times_of(frame[plan.data.timestamp], plan.data)
    return np.zeros(len(frame), np.int64), np.ones(len(frame), bool)
