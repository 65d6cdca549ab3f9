"""Row-wise cleaning: what each row says, and the first reason not to keep it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from app.data.input.reading import Piece
from app.data.prepare.plan import Plan
from app.data.values.numbers import strange
from app.data.values.text import blank, encode, lists_of, number_of, text_of
from app.data.values.time_numbers import DAY
from app.data.values.times import order_of, times_of
from app.errors import DataError

Array = npt.NDArray[Any]
MISSING_EVENT = "missing"  # the event type that the policy 'category' gives


@dataclass
class Note:
    """Values of a column that could not be used: how many, of how many, and the first.

    `kind` is "time", or what numbers are for: "value", "outlier", "where" or "attribute".
    """

    kind: str
    column: str
    bad: int
    good: int
    value: str
    row: int


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
    time: Array  # (N,) microseconds; zeros in a log without times
    order: list[Array]  # (N,) each: what orders events of the same time, the first key first
    event: Array
    event_texts: list[str]
    value: Array  # (N,) float32, NaN where the median is to fill
    outliers: list[Array]  # (N,) float64 each, NaN where missing
    frame: pl.DataFrame  # original columns, constants filled in
    negatives: pl.Series | None = None
    notes: list[Note] = field(default_factory=list)


def clean(piece: Piece, plan: Plan) -> Cleaned:
    """Judge every readable row of a piece on its own."""
    data, frame = plan.data, _fill_constants(piece.frame, plan)
    reason = np.zeros(len(frame), np.uint8)

    def reject(bad: Array, name: str) -> None:
        reason[(reason == 0) & bad] = plan.code(name)

    user, user_texts = encode(frame[data.user], data.missing_words)
    item, item_texts = encode(frame[data.item], data.missing_words)
    reject(user < 0, "missing_user")
    reject(item < 0, "missing_item")
    event, event_texts = _events(frame, plan)
    numbers = {c: number_of(frame[c], data.decimal) for c in plan.number_columns if c in frame.columns}
    notes = [note for c, n in numbers.items() if (note := _number_note(frame[c], n, piece, plan))]
    value, lacking = _values(frame, numbers, plan)
    time, order, good, wrong = _times(frame, plan)
    _reject_missing(frame, plan, event, lacking, ~good, reject)
    if plan.where:
        reject(~plan.where.keep(frame, numbers).to_numpy(), "filtered")
    reject(_unknown(event, event_texts, plan), "unknown_event")
    late = ~good | (time < plan.earliest) | (time > plan.latest)
    if (late & (reason == 0)).any():
        notes.append(_note("time", frame[wrong], late & (reason == 0), 0, piece))
    reject(late, "bad_time")
    listed = plan.split.negatives
    outliers = [_floats(numbers.get(column), len(frame)) for column in plan.outlier_columns]
    return Cleaned(
        reason, user, user_texts, item, item_texts, time, order, event, event_texts, value, outliers, frame,
        lists_of(frame[listed]) if listed and listed in frame.columns else None, notes,
    )  # fmt: skip


def refuse_types(frame: pl.DataFrame, name: str, plan: Plan) -> None:
    """Check that columns have types whose cells are ids, times, numbers or texts.

    Raises:
        DataError: names file, column, type, an example and the remedy.
    """
    data = plan.data
    for column in (data.user, data.item, *data.time_columns, data.event, *plan.number_columns):
        kind = frame.schema.get(column)
        if kind is not None and kind.is_nested():
            raise _refused(frame[column], name, data.item == column)
    for column in (data.user, data.item):
        refuse_id(frame[column], name)
    for column in (*plan.item_columns, *plan.user_columns):
        if column in frame.columns:
            refuse_nested(frame[column], name)


def refuse_id(cells: pl.Series, name: str) -> None:
    """Check that cells can be ids.

    Raises:
        DataError: they are lists, objects or booleans.
    """
    if cells.dtype.is_nested() or cells.dtype == pl.Boolean:
        raise _refused(cells, name, False)


def refuse_nested(cells: pl.Series, name: str) -> None:
    """Check that an attribute can be text.

    Raises:
        DataError: it holds objects, or lists of lists or of objects.
    """
    if holds_objects(cells):
        raise _refused(cells, name, False)


def holds_objects(cells: pl.Series) -> bool:
    """Whether cells are objects, or lists of lists or of objects; a list of texts is joined to one."""
    kind = cells.dtype
    inner = kind.inner if isinstance(kind, pl.List | pl.Array) else pl.String()
    return isinstance(kind, pl.Struct) or inner.is_nested()


def _refused(cells: pl.Series, name: str, listed: bool) -> DataError:
    kind = cells.dtype
    first = str(cells.drop_nulls().head(1).to_list()).removeprefix("[").removesuffix("]")[:80]
    holds = "lists" if isinstance(kind, pl.List | pl.Array) else "objects" if kind.is_nested() else "booleans"
    remedy = f"name a column of texts or numbers instead of {cells.name!r}"
    if listed and holds == "lists":
        remedy = 'set data.layout = "lists" where a row lists the items of a user, a basket or a session'
    elif holds == "objects":
        remedy = f"name a field of the objects, e.g. {cells.name}.id"
    return DataError(f"column {cells.name!r} holds {holds} ({kind}), e.g. {first}", where=name, remedy=remedy)


def _fill_constants(frame: pl.DataFrame, plan: Plan) -> pl.DataFrame:
    fills = {
        column: policy.removeprefix("constant:") if ":" in policy else MISSING_EVENT
        for column, policy in plan.data.missing.items()
        if column in frame.columns
        and (policy.startswith("constant:") or (policy == "category" and column == plan.data.event))
    }
    words = plan.data.missing_words
    filled = [text_of(frame[column], words).fill_null(text) for column, text in fills.items()]
    return frame.with_columns(filled) if fills else frame


def _events(frame: pl.DataFrame, plan: Plan) -> tuple[Array, list[str]]:
    """Positions of the event types; a file without the column has the first positive one."""
    data = plan.data
    if data.event and data.event in frame.columns:
        codes, texts = encode(frame[data.event], data.missing_words)
        return codes, texts.to_list()
    default = [*data.positive, *data.event_types, "event"][0]
    return np.zeros(len(frame), np.int64), [default]


def _unknown(event: Array, texts: list[str], plan: Plan) -> Array:
    known = set(plan.data.event_types)
    bad = np.array([bool(known) and text not in known for text in texts] + [False])  # -1: missing
    return bad[event]


def _floats(numbers: pl.Series | None, count: int) -> Array:
    return np.full(count, np.nan) if numbers is None else numbers.to_numpy().astype(np.float64)


def _values(frame: pl.DataFrame, numbers: dict[str, pl.Series], plan: Plan) -> tuple[Array, Array]:
    """Values (N,) float32, and which of them are missing."""
    column = plan.data.value
    if column not in numbers:
        above = plan.data.positive_above  # a file without values has events to predict, as one without types
        value = 1.0 if above is None or above < 1 else above + 1
        return np.full(len(frame), value, np.float32), np.zeros(len(frame), bool)
    values = _floats(numbers[column], len(frame))
    lacking = np.isnan(values)
    policy = plan.data.missing.get(column, "drop")
    if policy.startswith("constant:"):
        values = np.where(lacking, float(policy.removeprefix("constant:")), values)
    if policy != "drop":
        lacking = np.zeros_like(lacking)
    return values.astype(np.float32), lacking


def _number_note(series: pl.Series, numbers: pl.Series, piece: Piece, plan: Plan) -> Note | None:
    """What of a column that should hold numbers is none."""
    good = len(numbers) - numbers.null_count()
    if good == len(numbers):
        return None
    data, column = plan.data, series.name
    kind = "value" if column == data.value else "outlier" if column in plan.outlier_columns else "where"
    bad = strange(series, numbers, data.missing_words).to_numpy()
    return _note(kind, series, bad, good, piece)


def _note(kind: str, series: pl.Series, bad: Array, good: int, piece: Piece) -> Note:
    if not bad.any():
        return Note(kind, series.name, 0, good, "", -1)
    first = int(bad.argmax())
    return Note(kind, series.name, int(bad.sum()), good, str(series[first])[:80], int(piece.origins[first]))


def _reject_missing(
    frame: pl.DataFrame, plan: Plan, event: Array, lacking: Array, timeless: Array, reject: Any
) -> None:
    data, words = plan.data, plan.data.missing_words
    if data.timed:
        absent = np.zeros(len(frame), bool)
        rows = pl.Series(timeless)
        times = [frame[column].filter(rows) for column in data.time_columns if column in frame.columns]
        absent[timeless] = np.any([blank(cells, words).to_numpy() for cells in times], axis=0)
        reject(absent, "missing_timestamp")
    if data.event:
        reject(event < 0, "missing_event")
    if data.value:
        reject(lacking, "missing_value")
    for column in plan.dropped:
        if column in frame.columns:
            reject(blank(frame[column], words).to_numpy(), f"missing_{column}")


def _times(frame: pl.DataFrame, plan: Plan) -> tuple[Array, list[Array], Array, str]:
    """Times (N,), further keys (N,) of the order, where both are known (N,), and the column that is not."""
    columns = plan.data.time_columns
    if not columns:
        return np.zeros(len(frame), np.int64), [], np.ones(len(frame), bool), ""
    time, good = times_of(frame[columns[0]], plan.data)
    wrong = columns[0] if not good.all() else ""
    order: list[Array] = []
    for column in columns[1:]:
        if column not in frame.columns:  # a feedback log has the time alone
            order.append(np.zeros(len(frame), np.int64))
            continue
        keys, known, since_midnight = order_of(frame[column], plan.data)
        time = time + np.where(time % DAY == 0, since_midnight, 0)
        wrong, good = wrong or ("" if known.all() else column), good & known
        order.append(keys)
    return time, order, good, wrong or columns[0]
