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
    label       float32  1 for event types to predict, else 0; also 0 where the split hides it
    indptr      int64    (users + 1 + 1,): rows of user u are indptr[u]:indptr[u + 1]
    negatives   int32    (rows, M), test only, where the split lists them
  features/
    item_dense.npy     (items + 1, F) float32     item_category.npy (items + 1, K) int32
    user_dense.npy     (users + 1, F) float32     user_category.npy (users + 1, K) int32
    state.json and arrays: the fitted features (app.features)
  columns/items.parquet  raw attributes of the items, row-aligned with items/
  rejected/*.parquet     rows not kept: original columns, _reason, _file, _row
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from app.artifact import Artifact, open_artifact
from app.errors import ArtifactError
from app.tables.strings import Strings

Array = npt.NDArray[Any]
COLUMNS = ("user", "item", "time", "event", "value", "label")
BLOCK = 1 << 20  # rows handled at a time


class Schema(msgspec.Struct, frozen=True):
    """What the arrays mean; `users` and `items` count row 0 as well."""

    users: int
    items: int
    events: list[str]  # row 0 is "" (padding)
    history: int  # longest history a model sees
    context: list[str]  # names of the context features
    context_width: int  # floats that they make
    item_dense: int
    user_dense: int
    item_categories: list[int]  # rows of each category's vocabulary, row 0 unknown
    user_categories: list[int]
    end_time: int  # microseconds: last event of the training part
    positive: list[bool]  # by row of `events`: whether the type is to be predicted


def column_type(name: str) -> np.dtype[Any]:
    """The type of an array of COLUMNS on disk."""
    kinds = {"user": np.int32, "item": np.int32, "time": np.int64, "event": np.uint8}
    return np.dtype(kinds.get(name, np.float32))


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
        """(N,) float32: the labels that the types of a part's events imply, 1 or 0.

        They are what was observed. `part.label` differs from them where the split hides a label: the
        earlier events of held-out users, and repeats that `new_items_only` does not test.
        """
        return np.array(self.schema.positive, np.float32)[part.event[rows]]

    def positive_counts(self, *parts: Part) -> Array:
        """(items,) int64: events of each item to predict by their type, in these parts together.

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

    def history(
        self, ends: Array, part: Part | None = None, length: int | None = None
    ) -> tuple[Array, Array, Array]:
        """The last L events before row ends[b] of `part` (training by default), within its user.

        Args:
            ends: (B, 2) int64: first row of the user, and the row that the history ends before.
            length: L; as long as the data set's histories by default.

        Returns:
            item, event, time, each (B, L), the most recent last, 0 where there is none.
        """
        part = self.train if part is None else part
        rows = ends[:, 1:] - np.arange(length or self.schema.history, 0, -1)
        absent = rows < ends[:, :1]
        if not len(part):
            return tuple(np.zeros(rows.shape, c.dtype) for c in (part.item, part.event, part.time))  # type: ignore[return-value]
        events = tuple(column.take(rows, mode="clip") for column in (part.item, part.event, part.time))
        for column in events:
            np.copyto(column, 0, where=absent)
        return events  # type: ignore[return-value]

    def recent(self, users: Array, *parts: Part) -> tuple[Array, Array, Array]:
        """The last L events of users (B,) over several parts, by time.

        Returns:
            item, event, time, each (B, L), the most recent last, 0 where there is none.
        """
        histories = [
            self.history(np.stack([part.indptr[users], part.indptr[users + 1]], 1), part) for part in parts
        ]
        item, event, time = (np.concatenate(columns, 1) for columns in zip(*histories, strict=True))
        if len(parts) == 1:
            return item, event, time
        order = np.argsort(np.where(item > 0, time, np.iinfo(np.int64).min), axis=1, kind="stable")
        order = order[:, -self.schema.history :]
        return tuple(np.take_along_axis(column, order, 1) for column in (item, event, time))  # type: ignore[return-value]


def _read_schema(path: Path) -> Schema:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Schema)
    except msgspec.ValidationError as error:
        raise ArtifactError(
            f"not the schema that this version reads ({error})", where=str(path), remedy="run prepare again"
        ) from None
