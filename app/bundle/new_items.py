"""Items that came, or changed, after training: checked, given their rows, and kept.

A new item has no embedding, but what its columns say has rows like any other's: the features
that ran over the column in training run over its one value, and the bundle's item.onnx makes
its rows. Where a model looks at no content, it gets the rows of an unknown item. An item of the
bundle keeps its rows, which were learned or, without a training event, made of its content at
export; its columns change at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from app.bundle.format.item_columns import Columns, Numbers, choices
from app.bundle.format.layout import ITEM_GRAPH, Array, damaged
from app.bundle.format.session import Graph
from app.bundle.request.requests import Basis
from app.bundle.retrieval.overlay import Cell, Patch
from app.errors import RequestError
from app.events import Value
from app.features.base import Feature, State
from app.features.columns import FILLS, FittedColumns
from app.tables.rows import Rows

TEXT_BYTES = 10_000  # of a value, and of a vector
NUMBER_BYTES = 32  # more for each number of a vector


class NewItems:
    """The items of a bundle that came or changed after training; used by one thread.

    Args:
        path: of the bundle.
        rows: its stored rows "item" and "history".
        columns: that filters and caps know.
        shown: names of the columns that answers show.
        limit: items that are kept.
    """

    def __init__(
        self, path: Path, rows: Mapping[str, Rows], columns: Columns, shown: Sequence[str], limit: int
    ) -> None:
        self._columns, self.limit, self._trained = columns, limit, len(rows["item"])
        self._shown = shown
        self._graph = Graph(path / ITEM_GRAPH, 1) if (path / ITEM_GRAPH).exists() else None
        fitted = (path / "features" / "item" / "state.json").exists()
        self._features = FittedColumns.load(path / "features", "item") if fitted else FittedColumns([], [])
        self._fills = _read_fills(path / "features" / "item" / FILLS)
        kinds = {name: rows[name] for name in ("item", "history")}
        self._unknown = {name: stored.gather(np.zeros(1, np.int64)) for name, stored in kinds.items()}
        self.rows = {name: np.zeros((0, stored.width), np.float32) for name, stored in kinds.items()}
        self._cells: dict[int, dict[str, Cell]] = {}
        self._values: dict[int, Mapping[str, Value]] = {}  # of the columns as they were put
        self._times: dict[int, float] = {}
        self.basis: Basis = "content" if self._graph is not None and fitted else "nothing"

    @property
    def names(self) -> list[str]:
        """The columns that an item may have."""
        features = (feature.column for feature in self._features.features)
        return list(dict.fromkeys([*self._columns.names, *features, *self._shown]))

    @property
    def room(self) -> int:
        """How many further items can be kept."""
        return self.limit - len(self._cells)

    def has(self, row: int) -> bool:
        """Whether an item is one of those kept."""
        return row in self._cells

    def values(self, row: int) -> Mapping[str, Value] | None:
        """The columns of an item as they were put; None where it was not."""
        return self._values.get(row)

    def arrivals(self) -> list[tuple[float, int]]:
        """When each new item was last put, in seconds since 1970 (0: not known), and its row."""
        return [(time, row) for row, time in self._times.items() if row >= self._trained]

    def check(self, columns: Mapping[str, Value]) -> None:
        """Refuse columns that cannot be used.

        Raises:
            RequestError: one is unknown, or its value of another kind or too long; names it.
        """
        names, numbers = self.names, self._numbers()
        for name, value in columns.items():
            if name not in names:
                raise RequestError("no such column", where=_field(name, names), remedy=choices(names))
            text, most = cell(value), self._most_bytes(name)
            if text is not None and len(text.encode(errors="replace")) > most:
                what = f"more than {most} bytes"
                raise RequestError(what, where=f"columns.{name}", remedy="give a shorter text")
            if text is not None and name in numbers and _number(text) is None:
                raise RequestError("not a number", where=f"columns.{name}", remedy="give a number or null")

            for feature, state in self._fitted(name) if text is not None else ():
                if problem := feature.problem(text, state):
                    remedy = "give what the column held in training, or null"
                    raise RequestError(problem, where=f"columns.{name}", remedy=remedy)

    def put(self, items: Mapping[int, Mapping[str, Value]], times: Mapping[int, float]) -> None:
        """Take items in, or change them; columns that are not known are left aside.

        Args:
            items: their columns, all of them, by row: of a known item, of one kept here, or of
                new ones those that come next.
            times: seconds since 1970 at which they were put.
        """
        count = max([len(self.rows["item"]), *(row + 1 - self._trained for row in items)])
        rows = {name: _longer(values, count) for name, values in self.rows.items()}
        numbers = self._numbers()
        for row, columns in items.items():
            texts = {name: cell(value) for name, value in columns.items()}
            if row >= self._trained:
                for name, values in self._compute_rows(texts).items():
                    rows[name][row - self._trained] = values
            self._values[row], self._times[row] = columns, times[row]
            self._cells[row] = {
                name: _number(text) if text is not None and name in numbers else text
                for name, text in texts.items()
            }
        self.rows = rows

    def patch(self) -> Patch:
        """The columns of all items kept."""
        rows = np.array(sorted(self._cells), np.int64)
        cells = [self._cells[row] for row in rows.tolist()]
        return Patch(self._trained + len(self.rows["item"]), rows, cells)

    def fresh(self) -> Array:
        """The rows of new items, the latest first."""
        return self._trained + np.arange(len(self.rows["item"]) - 1, -1, -1)

    def _fitted(self, column: str) -> list[tuple[Feature, State]]:
        """The features of a column with their states."""
        pairs = zip(self._features.features, self._features.states, strict=True)
        return [(feature, state) for feature, state in pairs if feature.column == column]

    def _most_bytes(self, column: str) -> int:
        """Bytes that a value of a column may have as text."""
        vectors = (state for feature, state in self._fitted(column) if feature.cells == "vector")
        return TEXT_BYTES + NUMBER_BYTES * max((int(state["width"]) for state in vectors), default=0)

    def _numbers(self) -> set[str]:
        """The columns that hold numbers."""
        named = {name for name in self._columns.names if isinstance(self._columns[name], Numbers)}
        return named | {f.column for f in self._features.features if f.cells == "number"} - set(
            self._columns.names
        )

    def _compute_rows(self, texts: Mapping[str, str | None]) -> Mapping[str, Array]:
        """The rows (1, D) of a new item."""
        if self._graph is None or self.basis == "nothing":
            return self._unknown
        names = [feature.column for feature in self._features.features]
        columns = {name: np.array([texts.get(name) or self._fills.get(name)], object) for name in names}
        dense, category = self._features.transform(columns, 1)
        feeds = {"item_dense": dense, "item_category": category.astype(np.int64)}
        rows = self._graph.run({n: values for n, values in feeds.items() if n in self._graph.inputs})
        width = self.rows["item"].shape[1]
        return {"item": rows[:, :width], "history": rows[:, width:]}


def cell(value: Value) -> str | None:
    """A value as the text that preparing a file makes of it: whole floats as integers, lists joined by |."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "|".join(cell(element) or "" for element in value) or None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**63 else str(value)
    return None if value is None else str(value).strip() or None


def _read_fills(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except msgspec.MsgspecError as error:
        raise damaged(path, str(error)) from None


def _longer(values: Array, count: int) -> Array:
    """(count, D), a copy: others may still read `values`."""
    return np.concatenate([values, np.zeros((count - len(values), values.shape[1]), np.float32)])


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _field(name: str, names: list[str]) -> str:
    """The path of an unknown column, whose name is the caller's text."""
    return f"columns.{name}" if name.isidentifier() and len(name) < 40 else "columns"
