"""Outlier rules: bounds from the rows that train, and the rows beyond them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from app.data.prepare.dedupe_sort import read_batch, write_table
from app.data.prepare.partition import within_bounds
from app.data.prepare.plan import Plan
from app.data.prepare.selection.splits import Splitter
from app.data.prepare.selection.statistics import Column
from app.data.ray_map import run_all
from app.data.values.latest import latest_rows
from app.recipe import Outlier

Array = npt.NDArray[Any]
Json = dict[str, Any]
PART = "part"  # bucket-K.part.npy: the part of each row, 0 where it trains


@dataclass(frozen=True)
class OutlierBounds:
    """Values of a column beyond `low` and `high` are outliers."""

    column: str
    low: float
    high: float
    clip: bool


def find_outlier_bounds(plan: Plan, splitter: Splitter) -> list[OutlierBounds]:
    """The bounds of the recipe's outlier rules, fitted to the training rows of all buckets."""
    calls = [(bucket, plan, splitter) for bucket in range(plan.buckets)]
    for _ in run_all(mark_parts, calls, "", plan.scratch):
        pass
    return [_bounds_of(rule, plan) for rule in plan.data.outliers]


def mark_parts(bucket: int, plan: Plan, splitter: Splitter) -> None:
    """Write the part that each row of a bucket would be in if no row were dropped."""
    path = Path(plan.scratch) / f"bucket-{bucket}"
    rows = read_batch(path.with_suffix(".rows"))
    columns = {name: rows[name].to_numpy() for name in splitter.columns}
    hashes = read_batch(path.with_suffix(".users"))["hash"].to_numpy()
    np.save(path.with_suffix(f".{PART}.npy"), splitter.assign(columns, hashes)[0])


def _bounds_of(rule: Outlier, plan: Plan) -> OutlierBounds:
    files = tuple(f"bucket-{bucket}.rows" for bucket in range(plan.buckets))
    column = Column(plan.scratch, files, within_bounds(rule.column), PART)
    if rule.method == "iqr":
        low, high = column.quantiles((0.25, 0.75))
        reach = rule.threshold * (high - low)
    else:
        mean, deviation = column.moments()
        low = high = mean
        reach = rule.threshold * deviation
    return OutlierBounds(rule.column, low - reach, high + reach, rule.action == "clip")


def drop_outliers(bucket: int, plan: Plan, bounds: Sequence[OutlierBounds]) -> Json:
    """Write which rows of a bucket are beyond bounds, and item attributes within them.

    Returns:
        dropped: how many rows; users: with rows left; items: rows left of each.
    """
    path = Path(plan.scratch) / f"bucket-{bucket}"
    rows = read_batch(path.with_suffix(".rows"))
    values = {column: rows[within_bounds(column)].to_numpy() for column in plan.outlier_columns}
    bad = np.zeros(len(rows), bool)
    for bound in bounds:
        column = values[bound.column]
        if bound.clip:
            values[bound.column] = np.clip(column, bound.low, bound.high)
        else:
            bad |= (column < bound.low) | (column > bound.high)  # false for NaN
    np.save(path.with_suffix(".reason-1.npy"), np.where(bad, plan.code("outlier"), 0).astype(np.uint8))
    kept = np.flatnonzero(~bad)
    item, time, row = (rows[name].to_numpy() for name in ("item", "time", "row"))
    for number, name in enumerate(plan.item_columns):
        if name in values:
            table = _latest_values(values[name], item, (time, row), kept)
            write_table(path.with_suffix(f".attributes-{number}"), table)
    users = int(np.count_nonzero(np.bincount(rows["user"].to_numpy()[kept])))
    return {"dropped": int(bad.sum()), "users": users, "items": np.bincount(item[kept])}


def _latest_values(values: Array, item: Array, order: tuple[Array, Array], kept: Array) -> pa.Table:
    """The latest value kept of each item, with its time and row; `order`: times and rows (N,)."""
    time, row = order
    present = kept[~np.isnan(values[kept])]
    present = present[np.lexsort((row[present], time[present]))]
    chosen = latest_rows(item[present], np.ones(len(present), bool), int(item.max(initial=0)) + 1)
    chosen = present[chosen[chosen >= 0]]
    return pa.table({"item": item[chosen], "time": time[chosen], "row": row[chosen], "value": values[chosen]})
