"""Ids and attributes of items and users: merged over the pieces and the attribute files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from app.data.prepare.attribute_file import attribute_file, folded
from app.data.prepare.dedupe_sort import read_batch
from app.data.prepare.plan import Plan
from app.data.values.latest import attributes_of, merge_latest
from app.data.values.text import text_of
from app.recipe import AttributeFile
from app.terminal.console import say

Array = npt.NDArray[Any]


def items_of(plan: Plan, names: Sequence[str], put: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Items of the events and of the attribute file: id and attributes, sorted by id.

    Args:
        plan: the plan.
        names: of the pieces.
        put: attributes that were put while a service ran; the latest hold, also against the file.
    """
    columns = list(plan.item_columns)
    frames = (pl.DataFrame(pl.from_arrow(read_batch(Path(plan.scratch) / f"{n}.items"))) for n in names)
    seen = folded(frames, lambda frame: merge_latest(frame, "id", columns))
    items = _with_file(seen.select("id", *attributes_of(columns, seen)), plan, "items")
    for frame in put:
        items = merge(items, frame)
    return items.sort("id")


def users_of(plan: Plan, seen: pl.DataFrame) -> pl.DataFrame:
    """The users with rows, `seen`, with the attributes of the file, then those of the file alone.

    Where sessions count as users, each has the attributes of its user, and who has no session is left out.
    """
    if not (plan.data.session_gap_us and plan.data.sessions == "users" and plan.data.users):
        return _with_file(seen, plan, "users")
    owners = seen["id"].str.replace(r"/\d+$", "")
    known = _with_file(seen.drop("id").with_columns(id=owners), plan, "users").head(len(seen))
    return known.select(seen["id"], pl.exclude("id"))


def _with_file(seen: pl.DataFrame, plan: Plan, kind: str) -> pl.DataFrame:
    filed = attribute_file(plan, kind)
    if filed is None:
        return seen
    say_matches(seen["id"].unique(), filed["id"], kind, getattr(plan.data, kind))
    return merge(seen, filed)


def say_matches(seen: pl.Series, filed: pl.Series, kind: str, source: AttributeFile) -> None:
    """Say so where less than a tenth of the ids of the log are in the attribute files."""
    matched = seen.is_in(filed.implode()).sum()
    if matched * 10 >= len(seen):
        return
    ours, theirs = (", ".join(map(repr, ids.sort().head(2))) for ids in (seen, filed))
    examples = f"e.g. {ours} in the log, {theirs or 'none'} there"
    files = ", ".join(name.rpartition("/")[2] for name in source.files)
    remedy = f"data.{kind}.id = {source.id!r} must hold ids as the log spells them"
    say(f"{matched} of {len(seen)} {kind} of the log are in {files} ({examples}); {remedy}")


def merge(seen: pl.DataFrame, filed: pl.DataFrame) -> pl.DataFrame:
    """All ids, those of `seen` first and in order; where both have a column, the file's value wins."""
    joined = seen.join(filed, on="id", how="left", suffix="\0", maintain_order="left")
    both = [c for c in filed.columns if c != "id" and f"{c}\0" in joined.columns]
    joined = joined.with_columns([pl.coalesce(f"{c}\0", c).alias(c) for c in both]).drop(
        f"{c}\0" for c in both
    )
    only = filed.join(seen, on="id", how="anti").sort("id")
    return pl.concat([joined, only], how="diagonal")


def write_maps(plan: Plan, names: Sequence[str], items: pl.DataFrame) -> None:
    """For each piece, the position in `items` of each of its own items, as NAME.map.npy."""
    numbered = items.select("id").with_row_index("position")
    for name in names:
        path = Path(plan.scratch) / name
        own = pl.DataFrame(pl.from_arrow(read_batch(path.with_name(f"{name}.items")))).select("id")
        mapped = own.join(numbered, on="id", how="left", maintain_order="left")
        np.save(path.with_name(f"{name}.map.npy"), mapped["position"].to_numpy().astype(np.int32))


def bounded_attributes(plan: Plan, items: pl.DataFrame) -> pl.DataFrame:
    """Add the item attributes that are under an outlier rule: the latest value kept of each."""
    for number, column in enumerate(plan.item_columns):
        if column not in plan.outlier_columns:
            continue
        paths = [Path(plan.scratch) / f"bucket-{b}.attributes-{number}" for b in range(plan.buckets)]
        latest = pl.concat([pl.DataFrame(pl.from_arrow(read_batch(p))) for p in paths]).sort("time", "row")
        latest = latest.unique("item", keep="last", maintain_order=True)
        values = np.full(len(items), np.nan)
        values[latest["item"].to_numpy()] = latest["value"].to_numpy()
        texts = text_of(pl.Series(column, values))
        filed = items[column] if column in items.columns else None
        items = items.with_columns(texts if filed is None else filed.zip_with(filed.is_not_null(), texts))
    return items
