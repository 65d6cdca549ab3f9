"""What export writes for the first stage apart from an index: columns/ and candidates/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa

from app.bundle.format.layout import Array, compact
from app.data.dataset import Dataset
from app.data.values.text import number_of, text_of
from app.errors import RecipeError
from app.models.item_knn import neighbours, sets_of
from app.recipe import Recipe
from app.tables.strings import Strings

MOST_TEXTS = 100_000  # distinct values of a column that the recipe does not name
LARGEST = 2**53  # whole numbers beyond it are no floats: such codes are texts
LONGEST = 64  # characters of its texts on average
LONGEST_SHOWN = 10_000  # characters of a text that answers show
LATEST = 1000  # items that came last
FRESH = 1000  # rows for exploration
NEIGHBOURS, SHRINKAGE = 50, 10.0
NEVER = np.iinfo(np.int64).max


def write_columns(recipe: Recipe, dataset: Dataset, popularity: Array, folder: Path) -> str:
    """Write columns/; returns the one that makes segments of users, "" where there is none.

    Args:
        recipe: its export.columns and item features.
        dataset: has the columns.
        popularity: (items,) events of each item, by which items of equal values are ordered.
        folder: to write.

    Raises:
        RecipeError: export.columns names a column that the items do not have.
    """
    path = dataset.path / "columns" / "items.parquet"
    present = list(pl.read_parquet_schema(path)) if path.exists() else []
    chosen = recipe.export.columns
    if unknown := [name for name in chosen if name not in present]:
        remedy = f"the items have {', '.join(present) or 'no columns: name a file of attributes'}"
        raise RecipeError(f"no column {unknown[0]!r}", where="export.columns", remedy=remedy)
    prose = {feature.column for feature in recipe.features.item if feature.cells == "text"}
    written: list[tuple[str, str]] = []
    for name in chosen or [name for name in present if name not in prose]:
        column = pl.read_parquet(path, columns=[name])[name]
        kind = _write(column, popularity, folder / str(len(written)), chosen=bool(chosen))
        if kind:
            written.append((name, kind))
    folder.mkdir(exist_ok=True)
    (folder / "columns.json").write_bytes(msgspec.json.encode(written))
    _write_shown(path, [name for name in present if name not in dict(written)], folder)
    texts = {name for name, kind in written if kind == "text"}
    categories = [feature.column for feature in recipe.features.item if feature.cells == "category"]
    return next((name for name in categories if name in texts), "")


def _write_shown(path: Path, names: Sequence[str], folder: Path) -> None:
    """Write the columns that filters do not know, so that answers can show them; see ShownColumns."""
    for number, name in enumerate(names):
        column = pl.read_parquet(path, columns=[name])[name]
        texts = text_of(column).str.slice(0, LONGEST_SHOWN).fill_null("").to_arrow().cast(pa.large_string())
        _, offsets, data = texts.buffers()
        starts = np.frombuffer(offsets, np.int64, len(texts) + 1, 8 * texts.offset)
        strings = Strings(starts - starts[0], np.frombuffer(data or b"", np.uint8)[starts[0] : starts[-1]])
        strings.write(folder / "shown" / str(number))
    (folder / "shown.json").write_bytes(msgspec.json.encode(list(names)))


def _write(column: pl.Series, popularity: Array, folder: Path, *, chosen: bool) -> str:
    """Write a column; returns its kind, "" where it is left out."""
    text = text_of(column)
    numbers = number_of(column)
    exact = column.dtype.is_float() or (numbers.abs() < LARGEST).all()
    if exact and text.null_count() == numbers.null_count() < len(text):
        _write_numbers(numbers.to_numpy(), popularity, folder)
        return "number"
    distinct = text.drop_nulls().unique().sort()
    long = float(text.str.len_chars().mean() or 0) > LONGEST  # type: ignore[arg-type]
    if not chosen and (len(distinct) > MOST_TEXTS or long):
        return ""
    _write_texts(text, distinct, popularity, folder)
    return "text"


def _write_numbers(values: Array, popularity: Array, folder: Path) -> None:
    rows = np.flatnonzero(~np.isnan(values))
    rows = rows[np.lexsort((-popularity[rows], values[rows]))]
    folder.mkdir(parents=True)
    np.save(folder / "rows.npy", compact(rows))
    np.save(folder / "values.npy", values[rows].astype(np.float64))


def _write_texts(text: pl.Series, distinct: pl.Series, popularity: Array, folder: Path) -> None:
    coded = pl.DataFrame({"text": distinct}).with_row_index("code", offset=1)
    joined = text.to_frame("text").join(coded, on="text", how="left", maintain_order="left")
    codes = joined["code"].fill_null(0).to_numpy().astype(np.int64)
    rows = np.flatnonzero(codes)
    rows = rows[np.lexsort((-popularity[rows], codes[rows]))]
    Strings.save(folder / "texts", distinct.to_list())
    np.save(folder / "rows.npy", compact(rows))
    np.save(folder / "codes.npy", compact(codes))
    np.save(folder / "starts.npy", compact(np.searchsorted(codes[rows], np.arange(1, len(distinct) + 2))))


def write_candidates(dataset: Dataset, popularity: Array, folder: Path, *, consumed: bool) -> None:
    """Write candidates/ from every event kept.

    Args:
        dataset: has the events.
        popularity: (items,) events of each item.
        folder: to write.
        consumed: whether items that the same people met are needed.
    """
    folder.mkdir()
    np.save(folder / "popular.npy", compact(1 + np.argsort(-popularity[1:], kind="stable")))
    first_met, counts = _met(dataset)
    np.save(folder / "fresh.npy", compact(_fresh(first_met, counts)))
    if dataset.schema.timed:
        latest = _latest(first_met, LATEST)
        np.save(folder / "latest.npy", compact(latest))
        np.save(folder / "latest_time.npy", first_met[latest])
    if consumed:
        sets = sets_of(dataset, *dataset.parts)
        rows, similarity = neighbours(sets, min(NEIGHBOURS, dataset.schema.items - 1), SHRINKAGE)
        np.save(folder / "neighbour.npy", rows.astype(np.min_scalar_type(dataset.schema.items)))
        np.save(folder / "similarity.npy", similarity.astype(np.float16))


def _met(dataset: Dataset) -> tuple[Array, Array]:
    """Of each item (items,) the microseconds of its first event, NEVER where it has none, and its events."""
    first_met = np.full(dataset.schema.items, NEVER)
    counts = np.zeros(dataset.schema.items, np.int64)
    for part in dataset.parts:
        np.minimum.at(first_met, part.item, part.time)
        counts += np.bincount(part.item, minlength=len(counts))
    return first_met, counts


def _latest(first_met: Array, count: int) -> Array:
    """The items first met last, the latest first."""
    known = np.flatnonzero(first_met[1:] < NEVER) + 1
    return known[np.argsort(-first_met[known], kind="stable")][:count]


def _fresh(first_met: Array, counts: Array) -> Array:
    """Half of them those first met last, the latest first; then those met least."""
    fresh = _latest(first_met, FRESH // 2)
    others = np.setdiff1d(np.arange(1, len(counts)), fresh)
    rare = others[np.argsort(counts[others], kind="stable")][: FRESH - len(fresh)]
    return np.concatenate([fresh, rare])
