"""The prepared data set on disk: columns as memory-mapped arrays, read with numpy alone.

dataset/
  manifest.json          figures: rows_in, rows_kept, rejected {reason: n}, users, items, train, valid, test
  schema.json            Schema below
  users/ items/          Strings; row 0 is "" (unknown), real ids start at 1. All ids of kept events
                         have a row, and those of attribute files and listed negatives, so that what
                         training has not seen can be ranked by its content. Items are sorted by id;
                         users by a hash of the id, those without events last.
  train/ valid/ test/    one .npy a column, rows sorted by (user, time, order of input):
    user item   int32    rows of the vocabularies, >= 1; item 0 in a given test part: the core dropped it
    time        int64    microseconds since the epoch, UTC
    event       uint8    row of schema.events, >= 1
    value       float32
    label       float32  1 for events to predict by type and value, else 0; also 0 where the split hides it
    indptr      int64    (users + 1 + 1,): rows of user u are indptr[u]:indptr[u + 1]
    negatives   int32    (rows, M), test only, where the split lists them
  features/                (which floats of item_dense are of which feature: schema.item_blocks)
    item_dense.npy     (items + 1, F) float32     item_category.npy (items + 1, K) int32
    user_dense.npy     (users + 1, F) float32     user_category.npy (users + 1, K) int32
    state.json and arrays: the fitted features (app.features)
  columns/items.parquet  raw attributes of the items, row-aligned with items/
  rejected/*.parquet     rows not kept: original columns, _reason, _file, _row
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from app.artifact import Artifact, open_artifact
from app.errors import ArtifactError
from app.features.columns import Block
from app.features.context import Context
from app.tables.strings import Strings

Array = npt.NDArray[Any]
COLUMNS = ("user", "item", "time", "event", "value", "label")
BLOCK = 1 << 20  # rows handled at a time


class Schema(msgspec.Struct, frozen=True, dict=True):
    """What the arrays mean; `users` and `items` count row 0 as well."""

    users: int
    items: int
    events: list[str]  # row 0 is "" (padding)
    history: int  # longest history of a model that reads what is recent
    context: list[str]  # names of the context features
    context_width: int  # floats that they make
    item_dense: int
    user_dense: int
    item_categories: list[int]  # rows of each category's vocabulary, row 0 unknown
    user_categories: list[int]
    end_time: int  # microseconds: last event of the training part
    positive: list[bool]  # by row of `events`: whether the type is to be predicted
    timed: bool = True  # whether events have a time; where not, it is 0 everywhere, and there is no context
    ordered: bool = True  # where not, the events of a user are a set, in the order of a hash of their rows
    context_bounds: list[list[float]] = []  # [low, high] of each context float in training; []: not fitted
    positive_above: float | None = None  # events to be predicted have a value above it; None: any value
    ties: Literal["none", "order"] = "none"  # whether events of one moment come before each other, by row
    session_gap: int = 0  # microseconds, the pause that ends a session; 0: none does
    item_blocks: list[Block] = []  # which floats of item_dense are of which feature; []: not known

    @property
    def tied(self) -> bool:
        """Whether events of one moment do not come before each other."""
        return self.timed and self.ties == "none"

    @cached_property
    def moments(self) -> Context:
        """The context features of a request."""
        return Context(self.context, self.context_bounds, self.session_gap)


def column_type(name: str) -> np.dtype[Any]:
    """The type of an array of COLUMNS on disk."""
    kinds = {"user": np.int32, "item": np.int32, "time": np.int64, "event": np.uint8}
    return np.dtype(kinds.get(name, np.float32))


def observed_labels(
    event: Array, value: Array | None, positive: Sequence[bool], above: float | None
) -> Array:
    """(N,) float32: 1 for events that are to be predicted by type and value, else 0.

    Args:
        event: (N,) event types.
        value: (N,) float32, not looked at where `above` is None.
        positive: whether each type is to be predicted.
        above: the value of an event to predict is greater.
    """
    label: Array = np.array(positive, np.float32)[event]
    # A bound such as 0.1 is compared as values are stored, or 0.1 itself would be above it.
    return label if above is None or value is None else label * (value > np.float32(above))


@dataclass(frozen=True)
class Part:
    """The events of one split, sorted by user, then time. All arrays have N rows."""

    user: Array
    item: Array
    time: Array
    event: Array
    value: Array
    label: Array
    indptr: Array
    negatives: Array | None = None

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def load(cls, folder: Path) -> Part:
        """Memory-map the arrays of a folder."""
        # Plain arrays over the map: np.memmap adds 30 us to each look-up, and batches make many.
        columns = {c: np.asarray(np.load(folder / f"{c}.npy", mmap_mode="r")) for c in (*COLUMNS, "indptr")}
        listed = folder / "negatives.npy"
        return cls(**columns, negatives=np.load(listed, mmap_mode="r") if listed.exists() else None)

    def ends(self, users: Array, until: Array | None = None) -> Array:
        """(B,) for each user the row that their events end before, or their events before a moment.

        Args:
            until: (B,) microseconds; None: all events of the user count.
        """
        low: Array = self.indptr[users]
        high: Array = self.indptr[users + 1]
        if until is None:
            return high
        while (searched := low < high).any():  # a binary search in the times of each user
            middle = (low + high) // 2
            earlier = searched & (self.time[np.where(searched, middle, 0)] < until)
            low, high = np.where(earlier, middle + 1, low), np.where(searched & ~earlier, middle, high)
        return low

    @staticmethod
    def save(folder: Path, columns: Mapping[str, Array], users: int, negatives: Array | None = None) -> None:
        """Write columns sorted by user; `users` counts row 0."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in COLUMNS:
            np.save(folder / f"{name}.npy", np.ascontiguousarray(columns[name], column_type(name)))
        indptr = np.searchsorted(columns["user"], np.arange(users + 1)).astype(np.int64)
        np.save(folder / "indptr.npy", indptr)
        if negatives is not None:
            np.save(folder / "negatives.npy", np.ascontiguousarray(negatives, np.int32))


class Dataset:
    """A prepared data set, opened read-only; arrays are memory-mapped on first use."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact, self.path = artifact, artifact.path
        self.schema = _read_schema(self.path / "schema.json")

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> Dataset:
        """Open and verify the data set artefact at `path`.

        Raises:
            ArtifactError: absent, damaged, no data set, or written by another version.
        """
        return cls(open_artifact(path, "dataset", verify=verify))

    @cached_property
    def train(self) -> Part:
        """The events that models are fitted to."""
        return Part.load(self.path / "train")

    @cached_property
    def valid(self) -> Part:
        """The events that decide when training stops and which trial is best."""
        return Part.load(self.path / "valid")

    @cached_property
    def test(self) -> Part:
        """The events that the reported figures are of."""
        return Part.load(self.path / "test")

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that hold events, in the order train, valid, test: together every event kept."""
        return tuple(part for part in (self.train, self.valid, self.test) if len(part))

    def labels(self, part: Part, rows: slice = slice(None)) -> Array:
        """(N,) float32: the labels that type and value of a part's events imply, 1 or 0.

        They are what was observed. `part.label` differs from them where the split hides a label: the
        earlier events of held-out users, and repeats that `new_items_only` does not test.
        """
        return observed_labels(
            part.event[rows], part.value[rows], self.schema.positive, self.schema.positive_above
        )

    def positive_counts(self, *parts: Part) -> Array:
        """(items,) int64: events of each item to predict by type and value, in these parts together.

        `dataset.positive_counts(*dataset.parts)` counts every event kept. Row 0 counts what the k-core
        dropped from given test files.
        """
        counts = np.zeros(self.schema.items, np.int64)
        for part in parts:
            for start in range(0, len(part), BLOCK):
                rows = slice(start, start + BLOCK)
                chosen = part.item[rows][self.labels(part, rows) > 0]
                counts += np.bincount(chosen, minlength=len(counts))
        return counts

    @cached_property
    def users(self) -> Strings:
        """The ids of users by their rows."""
        return Strings.load(self.path / "users")

    @cached_property
    def items(self) -> Strings:
        """The ids of items by their rows."""
        return Strings.load(self.path / "items")

    def feature(self, name: str) -> Array:
        """item_dense, item_category, user_dense or user_category: one row an id."""
        return np.asarray(np.load(self.path / "features" / f"{name}.npy", mmap_mode="r"))

    @cached_property
    def trained(self) -> dict[str, Array]:
        """ "user" (users,) and "item" (items,) bool: ids with an event in the training part, of any label."""
        rows = {"user": self.schema.users, "item": self.schema.items}
        trained = {name: np.zeros(count, bool) for name, count in rows.items()}
        for name, known in trained.items():
            column = getattr(self.train, name)
            for start in range(0, len(column), BLOCK):
                known[column[start : start + BLOCK]] = True
            known[0] = False
        return trained

    @cached_property
    def popularity(self) -> Array:
        """(items,) int64: positive training events of each item; nothing of the parts held out."""
        return self.positive_counts(self.train)

    @cached_property
    def longest(self) -> int:
        """Events of the known user who has most of them, in all parts together."""
        counts = sum((np.diff(part.indptr[1:]) for part in self.parts), start=np.zeros(1, np.int64))
        return int(counts.max(initial=0))

    def history(
        self,
        ends: Array,
        part: Part | None = None,
        length: int | None = None,
        without: tuple[Array, Array] | None = None,
    ) -> tuple[Array, Array, Array]:
        """The last L events before row ends[b] of `part` (training by default), within its user.

        Args:
            ends: (B, 2) int64: first row of the user, and the row that the history ends before.
            length: L; as long as the data set's histories by default.
            without: (B,) first and (B,) end of rows that are left out; None: none are.

        Returns:
            item, event, time, each (B, L), the most recent last, 0 where there is none.
        """
        part = self.train if part is None else part
        rows = ends[:, 1:] - np.arange(length or self.schema.history, 0, -1)
        if without is not None:
            first, end = without[0][:, None], without[1][:, None]
            rows -= (rows < end) * (end - first)
        absent = rows < ends[:, :1]
        if not len(part):
            return tuple(np.zeros(rows.shape, c.dtype) for c in (part.item, part.event, part.time))  # type: ignore[return-value]
        events = tuple(column.take(rows, mode="clip") for column in (part.item, part.event, part.time))
        for column in events:
            np.copyto(column, 0, where=absent)
        return events  # type: ignore[return-value]

    def recent(
        self,
        users: Array,
        *parts: Part,
        length: int | None = None,
        until: Array | None = None,
        without: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        """The last L events of users (B,) over several parts, by time.

        Args:
            length: L; as long as the data set's histories by default.
            until: (B,) microseconds: only events before this moment; None: all.
            without: (B,) microseconds: events of this moment are left out; None: none. Not beside `until`.

        Returns:
            item, event, time, each (B, L), the most recent last, 0 where there is none.
        """
        length = length or self.schema.history
        histories = [
            self.history(
                np.stack([part.indptr[users], part.ends(users, until)], 1),
                part,
                length,
                None if without is None else (part.ends(users, without), part.ends(users, without + 1)),
            )
            for part in parts
        ]
        item, event, time = (np.concatenate(columns, 1) for columns in zip(*histories, strict=True))
        if len(parts) == 1:
            return item, event, time
        order = np.argsort(np.where(item > 0, time, np.iinfo(np.int64).min), axis=1, kind="stable")
        order = order[:, -length:]
        return tuple(np.take_along_axis(column, order, 1) for column in (item, event, time))  # type: ignore[return-value]


def _read_schema(path: Path) -> Schema:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Schema)
    except msgspec.ValidationError as error:
        raise ArtifactError(
            f"not the schema that this version reads ({error})", where=str(path), remedy="run prepare again"
        ) from None
