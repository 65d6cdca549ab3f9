"""Content features of items and users, fitted to the ids that occur in training.

The two arrays of a kind are built in memory, because features are looked up at random; the columns go
through the transformation a block at a time. A value that a feature cannot use, such as a vector of another
width or a file that is no image, counts as missing, and is put aside with its reason.
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
from app.errors import DataError
from app.features.base import Feature, as_text, is_missing
from app.features.columns import FILLS, FittedColumns, fit_columns
from app.features.kinds import kind_of
from app.terminal.console import say

Array = npt.NDArray[Any]
MOST_LOST = 0.1  # share of a column's values that a feature may not be able to use
SHOWN = 60  # characters of a value in a message
_BLOCK = 1 << 16
_UNUSABLE = {"id": pl.String, "column": pl.String, "_reason": pl.String, "value": pl.String}


def write_features(
    folder: Path,
    name: str,
    specs: Sequence[Feature],
    columns: pl.DataFrame,
    train: Array,
    missing: dict[str, str],
) -> tuple[FittedColumns, pl.DataFrame]:
    """Fit, save, and write NAME_dense.npy and NAME_category.npy with a row of zeros first.

    Args:
        folder: features/ of the data set.
        name: item or user.
        specs: features of the recipe.
        columns: id and attributes as text, one row an id, without row 0.
        train: (N,) bool, ids that occur in training.
        missing: `data.missing`.

    Returns:
        The features, and the values that they could not use: id, column, _reason, value.

    Raises:
        DataError: more than MOST_LOST of the values of a column cannot be used.
        MachineError: a feature needs a package that is not installed.
    """
    ids, columns = columns["id"], columns.drop("id")
    fills = {c: _fill(columns[c], train, missing.get(c, "")) for c in columns.columns}
    values = {c: _filled(columns[c], fills[c]) for c in columns.columns}
    prepared = {spec: spec.prepared(values[spec.column]) for spec in specs if spec.column in values}
    fitted = fit_columns(specs, {**values, **prepared}, train)
    unusable = [_unusable(fitted, spec, ids, prepared[spec], name) for spec in specs]
    fitted.save(folder, name)
    (folder / name / FILLS).write_text(json.dumps({c: fill for c, fill in fills.items() if fill}) + "\n")
    dense = np.zeros((len(train) + 1, fitted.dense_width), np.float32)
    category = np.zeros((len(train) + 1, len(fitted.categories)), np.int32)
    for start in range(0, len(train) if specs else 0, _BLOCK):
        block = {spec: cells[start : start + _BLOCK] for spec, cells in prepared.items()}
        values_dense, values_category = fitted.transform(block)
        rows = slice(start + 1, start + 1 + len(values_dense))
        dense[rows], category[rows] = values_dense, values_category
    np.save(folder / f"{name}_dense.npy", dense)
    np.save(folder / f"{name}_category.npy", category)
    return fitted, pl.concat([pl.DataFrame(schema=_UNUSABLE), *unusable])


def _unusable(fitted: FittedColumns, spec: Feature, ids: pl.Series, cells: Array, name: str) -> pl.DataFrame:
    """The values of a column that a feature cannot use; says how many there are, with the first of them.

    Raises:
        DataError: more than MOST_LOST of those that are not missing.
    """
    if type(spec).problem is Feature.problem and type(spec).prepared is Feature.prepared:
        return pl.DataFrame(schema=_UNUSABLE)  # it uses any value
    state = fitted.states[fitted.features.index(spec)]
    problems = [(row, reason) for row, cell in enumerate(cells) if (reason := spec.problem(cell, state))]
    rows = [(ids[row], spec.column, reason, as_text(cells[row])) for row, reason in problems]
    if rows:
        present = sum(isinstance(cell, np.ndarray) or not is_missing(cell) for cell in cells)
        item, _, reason, value = rows[0]
        kind, more = kind_of(spec), f"{len(rows):,} of {present:,} values of {name}s cannot be used"
        example = f"{name} {item!r} has {value[:SHOWN]!r}: {reason}"
        if len(rows) > MOST_LOST * present:
            raise DataError(
                f"{more}, e.g. {example}",
                where=f"column {spec.column!r}",
                remedy=f'mend the column, or name another one in [[features.{name}]] kind = "{kind}"',
            )
        say(f"column {spec.column!r}: {more} and count as missing, e.g. {example}; see rejected/")
    return pl.DataFrame(rows, schema=_UNUSABLE, orient="row")


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
    """Raw attributes as Parquet, row 0 (unknown) first; numbers where a feature says so, and no vectors."""
    path.parent.mkdir()
    numbers = {feature.column for feature in specs if feature.cells == "number"}
    vectors = {feature.column for feature in specs if feature.cells == "vector"}
    attributes = columns.select(
        as_number(c, columns.schema).alias(c) if c in numbers else pl.col(c)
        for c in columns.columns
        if c not in vectors
    )
    first = pl.DataFrame({c: pl.Series([None], dtype=attributes.schema[c]) for c in attributes.columns})
    table: pa.Table = pl.concat([first, attributes]).to_arrow()
    pq.write_table(table, path)
