"""Phases 2 and 3 as a whole: a task for every bucket, and what they count together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from app.data.prepare.dedupe_sort import dedupe_sort
from app.data.prepare.finalize import ITEM_ROWS, Final, finalize
from app.data.prepare.ingest import Ingested
from app.data.prepare.plan import Plan
from app.data.prepare.selection.core import ITEMS_LEFT, core_round
from app.data.prepare.selection.outliers import drop_outliers, find_outlier_bounds
from app.data.prepare.selection.splits import Splitter, time_cuts
from app.data.prepare.selection.statistics import Column
from app.data.ray_map import run_all
from app.recipe import Data

Array = npt.NDArray[Any]
Json = dict[str, Any]


def positive_types(events: Sequence[str], data: Data) -> list[bool]:
    """Whether each event type is one to predict; row 0 is padding."""
    return [bool(event) and (not data.positive or event in data.positive) for event in events]


class Buckets:
    """All buckets of users, from the rows of phase 1 to the columns of the data set.

    Args:
        ingested: what phase 1 gave.
        items: how many the vocabulary has.

    Attributes:
        rows: rows that are kept.
        users: users with rows kept, of each bucket.
        items: (items,) rows kept of each.
        tied: rows, before outliers and cores, that have the moment of an earlier row of their user.
        rejected: rows dropped so far, by reason.
        width: the most negatives that a row lists.
    """

    def __init__(self, ingested: Ingested, items: int) -> None:
        self.ingested, self.plan = ingested, ingested.plan
        self.splitter = Splitter(
            self.plan.split,
            self.plan.seed,
            tuple(positive_types(ingested.events, self.plan.data)),
            self.plan.data.positive_above,
        )
        self.rows, self.tied, self.width, self.step = 0, 0, 0, 0
        self.users = [0] * self.plan.buckets
        self.items = np.zeros(items, np.int64)
        self.rejected: Counter[str] = Counter()

    def dedupe_sort(self) -> None:
        """Phase 2: rows of each bucket without duplicates, sorted."""
        for bucket, report in self._run(dedupe_sort, "removing duplicates", self.ingested.infos):
            self.rows += report["rows"]
            self.tied += report["tied"]
            self.users[bucket] = report["users"]
            self.items[: len(report["items"])] += report["items"]
            self.rejected["duplicate"] += report["duplicates"]
            self.width = max(self.width, report["negatives"])

    def drop_outliers(self) -> None:
        """Drop rows beyond the bounds of the rows that train."""
        self.splitter = replace(self.splitter, cuts=self._cuts())
        bounds = find_outlier_bounds(self.plan, self.splitter)
        of_values = [b for b in bounds if b.clip and b.column == self.plan.data.value]
        self.splitter = replace(self.splitter, clips=tuple((b.low, b.high) for b in of_values))
        self.step, items = 1, np.zeros_like(self.items)
        for bucket, report in self._run(drop_outliers, "", bounds):
            self.rows -= report["dropped"]
            self.users[bucket] = report["users"]
            items[: len(report["items"])] += report["items"]
            self.rejected["outlier"] += report["dropped"]
        self.items = items

    def take_core(self) -> Array:
        """Drop users and items with too few training rows until none falls; (items,) bool, those left."""
        items_left = np.ones(len(self.items), bool)
        while True:
            np.save(Path(self.plan.scratch) / ITEMS_LEFT, items_left)
            splitter = replace(self.splitter, cuts=self._cuts())
            self.step += 1
            self.rows, dropped = 0, 0
            self.items, trained = np.zeros_like(self.items), np.zeros_like(self.items)
            for bucket, report in self._run(core_round, "", self.step, splitter):
                self.rows += report["rows"]
                self.users[bucket] = report["users"]
                self.items[: len(report["items"])] += report["items"]
                trained[: len(report["trained"])] += report["trained"]
                dropped += report["dropped"]
            enough = trained >= self.plan.data.min_item_events
            still_left = items_left & (enough | (self.plan.data.min_item_events == 1))
            # Users that fell take no training row from another user, so only items that fall ask for another
            # round; but the cuts of a split by time were computed before this round dropped rows.
            cuts_hold = dropped == 0 or self.plan.split.method != "time"
            if cuts_hold and (still_left == items_left).all():
                return items_left
            items_left = still_left

    def finalize(self, *, write: bool) -> list[Json]:
        """Phase 3: split, and write the parts if asked; the buckets' reports in order."""
        first = 1 + np.concatenate([[0], np.cumsum(self.users)])
        self.splitter = replace(self.splitter, cuts=self._cuts())
        final = Final(self.splitter, self.step, self.width, write)
        calls = [(bucket, self.plan, int(first[bucket]), final) for bucket in range(self.plan.buckets)]
        reports = dict(run_all(finalize, calls, "splitting", self.plan.scratch))
        return [reports[bucket] for bucket in range(self.plan.buckets)]

    def _run(self, work: Any, description: str, *arguments: Any) -> Any:
        calls = [(bucket, self.plan, *arguments) for bucket in range(self.plan.buckets)]
        return run_all(work, calls, description, self.plan.scratch)

    @property
    def times(self) -> Column:
        """The times of the rows kept so far."""
        files = tuple(f"bucket-{bucket}.rows" for bucket in range(self.plan.buckets))
        return Column(self.plan.scratch, files, "time", f"reason-{self.step}" if self.step else "")

    def _cuts(self) -> tuple[int, int]:
        """First moments of validation and test in a split by time of the rows kept so far."""
        split = self.plan.split
        return time_cuts(split, self.times, self.rows) if split.method == "time" and self.rows else (0, 0)


def number_items(plan: Plan, items: pl.DataFrame, kept: Array) -> pl.DataFrame:
    """Rows from 1 for the items kept, 0 for the others; tasks read them from `scratch`."""
    np.save(Path(plan.scratch) / ITEM_ROWS, np.where(kept, np.cumsum(kept), 0).astype(np.int32))
    return items.filter(pl.Series(kept))
