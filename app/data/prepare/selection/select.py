"""From the rows of phase 1 to what a data set holds: `check` and `prepare` both go this way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from app.data.prepare.attribute_file import rejected_attributes
from app.data.prepare.buckets import Buckets, number_items
from app.data.prepare.dedupe_sort import read_batch
from app.data.prepare.finalize import PARTS
from app.data.prepare.ingest import Ingested, no_events
from app.data.prepare.plan import Plan
from app.data.prepare.selection.notes import notes_of
from app.data.prepare.selection.refusals import refuse_no_training, span_of
from app.data.prepare.selection.row_order import refuse_sorted
from app.data.prepare.vocabulary import bounded_attributes, items_of, users_of, write_maps

Array = npt.NDArray[Any]
Json = dict[str, Any]


@dataclass(frozen=True)
class Selected:
    """Which rows are kept and in which part they are; their columns lie in the plan's `scratch`.

    Attributes:
        ingested: phase 1.
        items, users: id and attributes of each, in the order of their rows, row 0 left out.
        rows: events of each part, by bucket.
        end: microseconds, the last training event.
        width: the most negatives that a row lists.
        ties: whether events of one moment come before each other.
        figures: those of the data set's manifest.
    """

    ingested: Ingested
    items: pl.DataFrame
    users: pl.DataFrame
    rows: dict[str, list[int]]
    end: int
    width: int
    ties: Literal["none", "order"]
    figures: Json


def select(ingested: Ingested, *, write: bool) -> Selected:
    """Run the phases after the first.

    Args:
        ingested: phase 1.
        write: whether the columns of the parts are written to `scratch`.

    Raises:
        DataError: nothing is left, or nothing to train on.
        UserError: an attribute file cannot be used.
    """
    plan, rejected = ingested.plan, ingested.rejected
    refuse_sorted(ingested.splits, plan)
    names = [info.name for info in ingested.infos]
    items = items_of(plan, names, ingested.items_put)
    write_maps(plan, names, items)
    buckets = Buckets(ingested, len(items))
    buckets.dedupe_sort()
    if plan.data.outliers:
        buckets.drop_outliers()
        items = bounded_attributes(plan, items)
    rejected += buckets.rejected
    items = number_items(plan, items, _with_rows(buckets))
    if buckets.rows == 0:
        raise no_events(rejected + Counter(core=ingested.rows - rejected.total()), ingested.rows)
    reports = buckets.finalize(write=write)
    rejected.update({"core": sum(r["core"] for r in reports)})
    rows = {part: [r["rows"][part] for r in reports] for part in PARTS}
    refuse_no_training(reports, rows, plan, ingested.events)
    users = _users(plan)
    figures = {
        "rows_in": ingested.rows,
        "rows_kept": ingested.rows - rejected.total(),
        "rejected": {r: rejected[r] for r in plan.reasons if rejected[r]},
        "users": len(users),
        "items": len(items),
        **{part: sum(rows[part]) for part in PARTS},
        "order": "times" if plan.data.timed else "rows" if plan.data.ordered else "none",
    }
    if attributes := rejected_attributes(plan):
        figures["rejected_attributes"] = attributes
    if repeated := sum(r["repeated"] for r in reports):
        figures["repeated"] = repeated
    first, last = span_of(reports)
    ties = plan.data.settled_ties(moments=first < last)
    if notes := list(notes_of(figures, plan, buckets, (users, items), (first, last), ties)):
        figures["notes"] = notes
    end = max(r["end"] for r in reports)
    return Selected(ingested, items, users, rows, end, buckets.width, ties, figures)


def _with_rows(buckets: Buckets) -> Array:
    """Take the core where the recipe asks for one; (items,) bool: items that have a row.

    Items that nobody met have one too, unless a core asks for events; those that it dropped have none.
    """
    data, seen = buckets.plan.data, buckets.items > 0
    if max(data.min_user_events, data.min_item_events) == 1:
        return np.ones(len(seen), bool)
    items_left = buckets.take_core()
    return items_left if data.min_item_events > 1 else (buckets.items > 0) | ~seen


def _users(plan: Plan) -> pl.DataFrame:
    """The users with their attributes: those with rows, then those of the attribute file alone."""
    finals = [Path(plan.scratch) / f"bucket-{b}.final" for b in range(plan.buckets)]
    seen = pl.concat(
        [pl.DataFrame(pl.from_arrow(read_batch(p))).drop("hash") for p in finals], how="diagonal"
    )
    return users_of(plan, seen)
