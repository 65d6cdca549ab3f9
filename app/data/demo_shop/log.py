"""Writes the demo shop's event log: clean events in the order of time, and planted dirt of known counts.

Dirt is copies of clean rows with a defect, so the clean log stays whole. Why no clean row can be
counted as dirt, at any size and seed:

    duplicate  a user meets no item twice, so no two clean rows are alike; those that become
               duplicates and outliers are each copied once
    outlier    clean prices lie in [5, 30]: list prices in [10, 30], less up to half. An interval
               that holds half of such prices is at least 2.5 wide, whatever is sold, so the upper
               bound at 15 interquartile ranges is beyond 37 and below 405; planted ones are over 10,000
    core       every user has at least MIN_EVENTS events, two of which are held out, so three to train
               on; passers-by have one event each
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from app.data.demo_shop.truth import START
from app.data.demo_shop.world import SPAN

Array = npt.NDArray[Any]
MIN_EVENTS = 5
HEADER = ["user_id", "item_id", "timestamp", "event", "price", "quantity"]
EVENT_TYPES = ["view", "cart", "purchase"]
UNKNOWN_TYPES = ["hover", "PURCHASE", "test"]
BAD_TIMES = ["not-a-time", "2024-13-45 99:99:99", "1970-01-01 00:00:00", "2099-12-31 23:59:59"]
ROWS = 1 << 21  # in memory at a time
EVENT = np.dtype(
    [("time", "i4"), ("user", "i4"), ("item", "i4"), ("cents", "i4"), ("type", "u1"), ("quantity", "i1")]
)
RATES = {  # of all rows, in the order in which reasons are looked for
    "missing_user": 0.004,
    "missing_item": 0.003,
    "filtered": 0.002,
    "unknown_event": 0.003,
    "bad_time": 0.004,
    "duplicate": 0.006,
    "outlier": 0.003,
    "core": 0.002,
}
REASONS = list(RATES)


def planted(events: int) -> dict[str, int]:
    """How many rows of each defect a log of `events` rows has."""
    return {"unreadable": 2 + events // 1_000_000, **{r: max(2, round(events * RATES[r])) for r in REASONS}}


class Bins:
    """Events by time on disk, so that the log can be written in order with bounded memory."""

    def __init__(self, folder: Path, events: int) -> None:
        self.count = events // ROWS + 1
        self.paths = [folder / f"bin-{number}.tmp" for number in range(self.count)]

    def add(self, events: Array) -> None:
        """Append events (N,) of dtype EVENT, in any order."""
        number = events["time"].astype(np.int64) * self.count // SPAN
        order = np.argsort(number, kind="stable")
        ends = np.searchsorted(number[order], np.arange(self.count + 1))
        for path, start, end in zip(self.paths, ends[:-1], ends[1:], strict=True):
            with path.open("ab") as stream:
                events[order[start:end]].tofile(stream)

    def drain(self) -> Iterator[Array]:
        """Each bin's events in the order of time; its file is removed."""
        for path in self.paths:
            events = np.fromfile(path, EVENT)
            path.unlink()
            yield events[np.lexsort((events["item"], events["user"], events["time"]))]


class LogWriter:
    """Writes `events.csv`, bin by bin, and plants dirt on the way.

    Args:
        users: real users, numbered from 0.
        item_number: (I,) the number in each item's id.
        dirt: rows of each defect.
        clean: clean events of the whole log.
        rng: the source of chance.
    """

    def __init__(
        self, users: int, item_number: Array, dirt: dict[str, int], clean: int, rng: np.random.Generator
    ) -> None:
        self.dirt, self.clean, self.rng = dirt, clean, rng
        self.done, self.passers, self.users = 0, 0, users
        names = [f"u{n + 1:06d}" for n in range(users)] + [f"p{n + 1:06d}" for n in range(dirt["core"])]
        self.user_ids = pa.array(["", *names])
        self.item_ids = pa.array(["", *(f"i{n:05d}" for n in item_number)])
        self.types = pa.array(EVENT_TYPES + UNKNOWN_TYPES)
        self.bad_times = pa.array(BAD_TIMES)

    def write(self, stream: IO[bytes], events: Array) -> None:
        """Append clean events (N,) with their share of the dirt.

        Args:
            stream: the open file.
            events: of dtype EVENT, in the order of time.
        """
        due = {reason: self._due(total, len(events)) for reason, total in self.dirt.items()}
        self.done += len(events)
        reason = np.repeat(np.arange(len(REASONS)), [due[r] for r in REASONS])
        source = self.rng.choice(len(events), len(reason), replace=False)
        order = np.argsort(np.concatenate([np.arange(len(events)), source + 0.5]))
        rows = np.concatenate([events, events[source]])[order]
        defect = np.concatenate([np.full(len(events), -1), reason])[order]
        table = self._table(rows, self._defects(defect))
        options = csv.WriteOptions(include_header=False, quoting_style="none")
        csv.write_csv(table, stream, options)
        for number in range(due["unreadable"]):
            stream.write(b"u000001,i00001\n" if number % 2 else b"u000001,i00001,a,b,c,d,e,f,g\n")

    def _due(self, total: int, rows: int) -> int:
        """The share of `total` that falls to the next `rows` clean events; all shares sum to `total`."""
        return total * (self.done + rows) // self.clean - total * self.done // self.clean

    def _defects(self, defect: Array) -> dict[str, Array]:
        """Reason -> mask of rows that have it. Every other faulty row has a later defect as well."""
        masks = {reason: defect == number for number, reason in enumerate(REASONS)}
        later = {
            "missing_user": "missing_item",
            "missing_item": "unknown_event",
            "filtered": "bad_time",
            "unknown_event": "bad_time",
            "bad_time": "outlier",
        }
        also = {reason: np.flatnonzero(masks[reason])[::2] for reason in later}
        for reason, second in later.items():
            masks[second][also[reason]] = True
        return masks

    def _table(self, rows: Array, has: dict[str, Array]) -> pa.Table:
        user, item, kind = rows["user"] + 1, rows["item"] + 1, rows["type"].astype(np.int64)
        passers = np.flatnonzero(has["core"])
        user[passers] = self.users + 1 + self.passers + np.arange(len(passers))
        self.passers += len(passers)
        user[has["missing_user"]] = 0
        item[has["missing_item"]] = 0
        kind[has["unknown_event"]] = len(EVENT_TYPES) + kind[has["unknown_event"]] % len(UNKNOWN_TYPES)
        dear = np.where(has["outlier"], 1_000_000 + 1_000 * rows["cents"], 0)
        return pa.table(
            {
                "user_id": self.user_ids.take(pa.array(user)),
                "item_id": self.item_ids.take(pa.array(item)),
                "timestamp": self._times(rows["time"], has["bad_time"]),
                "event": self.types.take(pa.array(kind)),
                "price": pa.array((rows["cents"] + dear) / 100),
                "quantity": pa.array(np.where(has["filtered"], -1, rows["quantity"])),
            }
        )

    def _times(self, seconds: Array, bad: Array) -> pa.Array:
        good = pa.array(seconds.astype(np.int64) + START).cast(pa.timestamp("s")).cast(pa.string())
        wrong = self.bad_times.take(pa.array(np.arange(bad.sum()) % len(BAD_TIMES)))
        return pc.replace_with_mask(good, pa.array(bad), wrong)
