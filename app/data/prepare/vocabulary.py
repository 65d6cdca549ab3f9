"""Ids and attributes of items and users: merged over the pieces and the attribute files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from app.data.input.files import cut, describe, find
from app.data.input.reading import pieces
from app.data.prepare.dedupe_sort import read_batch
from app.data.prepare.plan import Plan
from app.data.values.text import normal_ids, text_of
from app.errors import DataError
from app.recipe import AttributeFile, Data

Array = npt.NDArray[Any]
_FOLD_ROWS = 2_000_000


def first_values(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """One row an id, sorted by id, with the first value of each column that is not missing."""
    gathered: list[pl.DataFrame] = []
    for frame in frames:
        gathered.append(frame)
        if sum(len(f) for f in gathered) > _FOLD_ROWS and len(gathered) > 1:
            gathered = [_fold(gathered)]
    return _fold(gathered).sort("id")


def _fold(frames: list[pl.DataFrame]) -> pl.DataFrame:
    whole = (
        pl.concat(frames, how="diagonal") if frames else pl.DataFrame({"id": pl.Series([], dtype=pl.String)})
    )
    if whole.width == 1:
        return whole.unique(maintain_order=True)
    return whole.group_by("id", maintain_order=True).agg(pl.exclude("id").drop_nulls().first())


def items_of(plan: Plan, names: Sequence[str], put: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Items of the events and of the attribute file: id and attributes, sorted by id.

    Args:
        plan: the plan.
        names: of the pieces.
        put: attributes that were put while a service ran; the latest hold, also against the file.
    """
    seen = first_values(
        pl.DataFrame(pl.from_arrow(read_batch(Path(plan.scratch) / f"{n}.items"))) for n in names
    )
    items = merge(seen, attribute_file(plan.data.items, plan.data, "data.items"))
    for frame in put:
        items = merge(items, frame)
    return items.sort("id")


def merge(seen: pl.DataFrame, filed: pl.DataFrame) -> pl.DataFrame:
    """All ids, those of `seen` first and in order; where both have a column, the file's value wins."""
    joined = seen.join(filed, on="id", how="left", suffix="\0", maintain_order="left")
    both = [c for c in filed.columns if c != "id" and f"{c}\0" in joined.columns]
    joined = joined.with_columns([pl.coalesce(f"{c}\0", c).alias(c) for c in both]).drop(
        f"{c}\0" for c in both
    )
    only = filed.join(seen, on="id", how="anti").sort("id")
    return pl.concat([joined, only], how="diagonal")


def attribute_file(source: AttributeFile | None, data: Data, key: str) -> pl.DataFrame:
    """An attribute file as text columns, one row an id; rows without an id do not count.

    Raises:
        DataError: a file that cannot be read, or a column that is not there.
    """
    empty = pl.DataFrame({"id": pl.Series([], dtype=pl.String)})
    if source is None:
        return empty
    frames = [empty]
    for name in find(source.files, key=f"{key}.files"):
        # The recipe's format is that of the events; an attribute file goes by its ending.
        file = describe(name, data.model_copy(update={"format": "auto"}))
        missing = [c for c in (source.id, *source.columns) if c not in file.columns]
        if missing:
            remedy = f"the file has {', '.join(file.columns)}"
            raise DataError(f"no column {missing[0]!r} ({key})", where=name, remedy=remedy)
        columns = source.columns or [c for c in file.columns if c != source.id]
        for split in cut(file, 0, data):
            for piece in pieces(split, data):
                if piece.frame.height:
                    texts = {c: text_of(piece.frame[c]) for c in columns if c in piece.frame.columns}
                    frames.append(pl.DataFrame({"id": normal_ids(piece.frame[source.id]), **texts}))
    return first_values(f.drop_nulls("id") for f in frames)


def write_maps(plan: Plan, names: Sequence[str], items: pl.DataFrame) -> None:
    """For each piece, the position in `items` of each of its own items, as NAME.map.npy."""
    numbered = items.select("id").with_row_index("position")
    for name in names:
        path = Path(plan.scratch) / name
        own = pl.DataFrame(pl.from_arrow(read_batch(path.with_name(f"{name}.items")))).select("id")
        mapped = own.join(numbered, on="id", how="left", maintain_order="left")
        np.save(path.with_name(f"{name}.map.npy"), mapped["position"].to_numpy().astype(np.int32))


def bounded_attributes(plan: Plan, items: pl.DataFrame) -> pl.DataFrame:
    """Add the item attributes that are under an outlier rule: the first value kept of each."""
    for number, column in enumerate(plan.item_columns):
        if column not in plan.outlier_columns:
            continue
        paths = [Path(plan.scratch) / f"bucket-{b}.attributes-{number}" for b in range(plan.buckets)]
        firsts = pl.concat([pl.DataFrame(pl.from_arrow(read_batch(p))) for p in paths]).sort("row")
        firsts = firsts.unique("item", keep="first", maintain_order=True)
        values = np.full(len(items), np.nan)
        values[firsts["item"].to_numpy()] = firsts["value"].to_numpy()
        texts = text_of(pl.Series(column, values))
        filed = items[column] if column in items.columns else None
        items = items.with_columns(texts if filed is None else filed.zip_with(filed.is_not_null(), texts))
    return items
