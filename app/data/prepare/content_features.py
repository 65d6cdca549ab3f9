"""Content features of items and users, fitted to the ids that occur in training.

The two arrays of a kind are built in memory, because features are looked up at random; the columns go
through the transformation a block at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from app.data.prepare.clean import MISSING_EVENT
from app.data.values.text import as_number
from app.features.base import Feature
from app.features.columns import FILLS, FittedColumns, fit_columns

Array = npt.NDArray[Any]
_BLOCK = 1 << 16


def write_features(
    folder: Path,
    name: str,
    specs: Sequence[Feature],
    columns: pl.DataFrame,
    train: Array,
    missing: dict[str, str],
) -> FittedColumns:
    """Fit, save, and write NAME_dense.npy and NAME_category.npy with a row of zeros first.

    Args:
        folder: features/ of the data set.
        name: item or user.
        specs: features of the recipe.
        columns: attributes as text, one row an id, without row 0.
        train: (N,) bool, ids that occur in training.
        missing: `data.missing`.
    """
    fills = {c: _fill(columns[c], train, missing.get(c, "")) for c in columns.columns}
    values = {c: _filled(columns[c], fills[c]) for c in columns.columns}
    fitted = fit_columns(specs, values, train)
    fitted.save(folder, name)
    (folder / name / FILLS).write_text(json.dumps({c: fill for c, fill in fills.items() if fill}) + "\n")
    dense = np.zeros((len(train) + 1, fitted.dense_width), np.float32)
    category = np.zeros((len(train) + 1, len(fitted.categories)), np.int32)
    for start in range(0, len(train) if specs else 0, _BLOCK):
        block = {c: v[start : start + _BLOCK] for c, v in values.items()}
        values_dense, values_category = fitted.transform(block)
        rows = slice(start + 1, start + 1 + len(values_dense))
        dense[rows], category[rows] = values_dense, values_category
    np.save(folder / f"{name}_dense.npy", dense)
    np.save(folder / f"{name}_category.npy", category)
    return fitted


def _fill(column: pl.Series, train: Array, policy: str) -> str:
    """What the policy of `data.missing` puts where a value is missing; "": nothing."""
    if policy == "category":
        return MISSING_EVENT
    if policy == "median":
        frame = column.to_frame("x")
        numbers = frame.select(as_number("x", frame.schema)).to_series()
        median = numbers.filter(pl.Series(train)).median()
        return "" if median is None else str(median)
    return ""


def _filled(column: pl.Series, fill: str) -> Array:
    """Values as objects, None where missing and not filled."""
    if fill:
        column = column.fill_null(fill)
    return (
        column.to_numpy().astype(object) if column.dtype != pl.String else np.array(column.to_list(), object)
    )


def write_raw(path: Path, columns: pl.DataFrame, specs: Sequence[Feature]) -> None:
    """Raw attributes as Parquet, row 0 (unknown) first; numbers where a feature says so."""
    path.parent.mkdir()
    numbers = {feature.column for feature in specs if feature.cells == "number"}
    attributes = columns.select(
        as_number(c, columns.schema).alias(c) if c in numbers else pl.col(c) for c in columns.columns
    )
    first = pl.DataFrame({c: pl.Series([None], dtype=attributes.schema[c]) for c in attributes.columns})
    table: pa.Table = pl.concat([first, attributes]).to_arrow()
    pq.write_table(table, path)
