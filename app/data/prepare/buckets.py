"""Phases 2 and 3 as a whole: a task for every bucket, and what they find together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from app.data.prepare.dedupe_sort import dedupe_sort
from app.data.prepare.finalize import ALIVE, ITEM_ROWS, core_round, finalize
from app.data.prepare.ingest import Ingested
from app.data.prepare.outliers import Column, find_outlier_bounds
from app.data.prepare.plan import Plan
from app.data.ray_map import run_all
from app.recipe import Data

Array = npt.NDArray[Any]
Json = dict[str, Any]
_DAY = 86_400_000_000


@dataclass
class DedupedBuckets:
    """Phase 2: the buckets' users and rows, and rows of each item over all of them."""

    users: list[int]
    rows: int
    items: Array  # (items,) rows kept of each
    rejected: Counter[str]
    width: int  # listed negatives of a row


def dedupe_sort_all(ingested: Ingested, items: int) -> DedupedBuckets:
    """Phase 2 of all buckets; `items` counts the vocabulary."""
    plan, infos = ingested.plan, ingested.infos
    bounds = find_outlier_bounds(plan, [f"{info.name}.rows" for info in infos])
    total = DedupedBuckets([0] * plan.buckets, 0, np.zeros(items, np.int64), Counter(), 0)
    calls = [(bucket, plan, infos, bounds) for bucket in range(plan.buckets)]
    for bucket, made in run_all(dedupe_sort, calls, "refining", plan.scratch):
        total.users[bucket] = made["users"]
        total.rows += made["rows"]
        total.items[: len(made["items"])] += made["items"]
        total.rejected.update(made["rejected"])
        total.width = max(total.width, made["negatives"])
    return total


def core(plan: Plan, deduped: DedupedBuckets) -> DedupedBuckets:
    """Drop rare items and users until nothing more falls."""
    alive = deduped.items >= plan.data.min_item_events
    calls = [(bucket, plan) for bucket in range(plan.buckets)]
    while True:
        np.save(Path(plan.scratch) / ALIVE, alive)
        total = DedupedBuckets([0] * plan.buckets, 0, np.zeros_like(deduped.items), Counter(), deduped.width)
        train = np.zeros_like(alive, np.int64)
        for bucket, made in run_all(core_round, calls, "", plan.scratch):
            total.users[bucket] = made["users"]
            total.rows += made["rows"]
            total.items[: len(made["items"])] += made["items"]
            train[: len(made["train"])] += made["train"]
        left = alive & (train >= plan.data.min_item_events)
        if (left == alive).all():
            return total
        alive = left


def number_items(plan: Plan, items: pl.DataFrame, kept: Array) -> pl.DataFrame:
    """Rows from 1 for the items kept, 0 for the others; tasks read them from `scratch`."""
    np.save(Path(plan.scratch) / ITEM_ROWS, np.where(kept, np.cumsum(kept), 0).astype(np.int32))
    return items.filter(pl.Series(kept))


def finalize_all(plan: Plan, ingested: Ingested, deduped: DedupedBuckets) -> list[Json]:
    """Phase 3 of all buckets; their reports in order."""
    positive = np.array(positive_types(ingested.events, plan.data))
    first = 1 + np.concatenate([[0], np.cumsum(deduped.users)])
    cuts = _cuts(plan, deduped.rows)
    calls = [(b, plan, int(first[b]), cuts, positive, deduped.width) for b in range(plan.buckets)]
    made = dict(run_all(finalize, calls, "splitting", plan.scratch))
    return [made[bucket] for bucket in range(plan.buckets)]


def positive_types(events: Sequence[str], data: Data) -> list[bool]:
    """Whether each event type is one to predict; row 0 is padding."""
    return [bool(event) and (not data.positive or event in data.positive) for event in events]


def _cuts(plan: Plan, rows: int) -> tuple[int, int]:
    """First moments of validation and test, of a split by time."""
    split = plan.split
    if split.method != "time":
        return 0, 0
    column = Column(plan.scratch, tuple(f"bucket-{b}.rows" for b in range(plan.buckets)), "time")
    (end,) = column.ranked([rows - 1])
    if split.test_days:
        test = end + 1 - round(split.test_days * _DAY)
    else:
        test = _first_of_last(column, rows, split.test, end)
    if split.valid_days:
        return test - round(split.valid_days * _DAY), test
    return _first_of_last(column, rows, split.valid + (0 if split.test_days else split.test), end), test


def _first_of_last(column: Column, rows: int, share: float, end: int) -> int:
    held = round(rows * share)
    return int(column.ranked([rows - held])[0]) if held else end + 1
