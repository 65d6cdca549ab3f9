"""Columns of the items, indexed by value, as memory-mapped arrays that all replicas share.

columns/
  columns.json       [[name, kind], …], kind "number" or "text"; each has a folder, 0, 1, …
  N/rows.npy         (P,) rows of the items that have a value: by value, equal ones by popularity
  N/values.npy       number: (P,) float64, ascending
  N/texts/           text: the V distinct values, ascending (Strings)
  N/starts.npy       text: (V + 1,) where the items of each value start in `rows`
  N/codes.npy        text: (items,) number of each item's value, from 1; 0 where it has none

What a comparison holds for is a few spans of `rows`, found by binary search.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import NoReturn

import msgspec
import numpy as np

from app.bundle.format.layout import Array, damaged, load_array
from app.errors import ArtifactError, RequestError
from app.features.expression import Like, Number, Value
from app.tables.strings import Strings

BYTES_A_STEP = 50  # of text, which are read in about the time that one part is looked for
Spans = list[tuple[int, int]]  # of `rows`: disjoint, ascending


class Numbers:
    """A column of numbers, with the rows of items by value."""

    kind = "number"

    def __init__(self, rows: Array, values: Array) -> None:
        self.rows, self._values = rows, values

    @classmethod
    def open(cls, folder: Path) -> Numbers:
        """Map the files of a folder; raises ArtifactError where they do not fit."""
        rows, values = load_array(folder / "rows.npy"), load_array(folder / "values.npy")
        return cls(rows, values) if len(rows) == len(values) else _unfit(folder)

    def spans(self, sign: str, value: Number) -> Spans:
        """Of the items whose value compares so."""
        rounded = float(value)
        low, high = (int(np.searchsorted(self._values, rounded, side)) for side in ("left", "right"))
        written = Decimal(repr(rounded))
        if not isinstance(value, float) and written != value:  # no float is the value, so none equals it
            low = high = high if written < value else low
        return _compared(sign, low, high, len(self.rows))

    @classmethod
    def from_values(cls, values: Sequence[float | None]) -> Numbers:
        """A column in memory of the values (N,) of rows 1 to N."""
        numbers = np.array([np.nan if value is None else value for value in values], np.float64)
        order = np.argsort(numbers, kind="stable")[: int(np.count_nonzero(~np.isnan(numbers)))]
        return cls(order + 1, numbers[order])

    def by_row(self, items: int) -> Array:
        """(items,) values, NaN where there is none."""
        values = np.full(items, np.nan)
        values[self.rows] = self._values
        return values


class Texts:
    """A column of texts. `codes` (items,): number of each item's text, from 1; 0: none."""

    kind = "text"

    def __init__(self, rows: Array, texts: Strings, starts: Array, codes: Array) -> None:
        self.rows, self._texts, self._starts, self.codes = rows, texts, starts, codes

    @classmethod
    def open(cls, folder: Path, items: int) -> Texts:
        """Map the files of a folder; raises ArtifactError where they do not fit."""
        rows, starts, codes = (load_array(folder / f"{name}.npy") for name in ("rows", "starts", "codes"))
        offsets, data = (load_array(folder / "texts" / f"{name}.npy") for name in ("offsets", "bytes"))
        fits = len(starts) == len(offsets) and starts[-1] == len(rows) and offsets[-1] == len(data)
        return (
            cls(rows, Strings(offsets, data), starts, codes)
            if fits and len(codes) == items
            else _unfit(folder)
        )

    @classmethod
    def from_values(cls, values: Sequence[str | None]) -> Texts:
        """A column in memory of the values (N,) of rows 1 to N."""
        texts = sorted({value for value in values if value is not None})
        numbers = {text: code for code, text in enumerate(texts, 1)}
        codes = np.array([0, *(numbers.get(value or "", 0) for value in values)], np.int64)
        rows = np.argsort(codes, kind="stable")[np.count_nonzero(codes == 0) :]
        return cls(rows, Strings.of(texts), np.searchsorted(codes[rows], np.arange(1, len(texts) + 2)), codes)

    def code(self, text: str) -> int:
        """The code of a text, 0 where no item has it."""
        position = bisect_left(self._texts, text)
        return position + 1 if position < len(self._texts) and self._texts[position] == text else 0

    def text(self, row: int) -> str | None:
        """The text of a row; None where it has none."""
        code = int(self.codes[row])
        return self._texts[code - 1] if code else None

    @property
    def count(self) -> int:
        """The number of distinct texts."""
        return len(self._texts)

    def spans(self, sign: str, value: str) -> Spans:
        """Of the items whose text compares so."""
        position = bisect_left(self._texts, value)
        present = position < len(self._texts) and self._texts[position] == value
        low, high = int(self._starts[position]), int(self._starts[position + present])
        return _compared(sign, low, high, len(self.rows))

    def spans_like(self, pattern: Like) -> Spans:
        """Of the items whose text matches; takes time by `steps_like`."""
        matches = pattern.matcher()
        return merged([self.span(i + 1) for i in self._beginning(pattern) if matches(self._texts[i])])

    def steps_like(self, pattern: Like) -> int:
        """The work of `spans_like`, told at once: parts of texts to look for, and text by BYTES_A_STEP."""
        texts = self._beginning(pattern)
        return len(texts) * len(pattern.parts) + self._texts.size(texts.start, texts.stop) // BYTES_A_STEP

    def _beginning(self, pattern: Like) -> range:
        """The texts that begin as the pattern does."""
        start = bisect_left(self._texts, pattern.prefix)
        return range(start, bisect_left(self._texts, pattern.prefix + "\U0010ffff"))

    def span(self, code: int) -> tuple[int, int]:
        """The span of a code."""
        return int(self._starts[code - 1]), int(self._starts[code])


Column = Numbers | Texts


class Columns:
    """Columns by name.

    Args:
        items: rows, row 0 counted.
        columns: may be empty.
    """

    def __init__(self, items: int, columns: Mapping[str, Column]) -> None:
        self.items, self._columns = items, dict(columns)

    @classmethod
    def open(cls, folder: Path, items: int) -> Columns:
        """Map a folder; one that does not exist has no columns.

        Raises:
            ArtifactError: a file is missing, truncated or does not fit the others.
        """
        path = folder / "columns.json"
        if not path.exists():
            return cls(items, {})
        try:
            named = msgspec.json.decode(path.read_bytes(), type=list[tuple[str, str]])
        except msgspec.MsgspecError as error:
            raise damaged(path, str(error)) from None
        return cls(
            items,
            {
                name: Numbers.open(folder / str(n))
                if kind == "number"
                else Texts.open(folder / str(n), items)
                for n, (name, kind) in enumerate(named)
            },
        )

    @property
    def names(self) -> list[str]:
        """In the order of export."""
        return list(self._columns)

    def __getitem__(self, name: str) -> Column:
        return self._columns[name]

    def codes(self, name: str, field: str) -> Array:
        """(items,) the number of each item's value in a column of texts; 0: none. Raises as `texts`."""
        return self.texts(name, field).codes

    def texts(self, name: str, field: str) -> Texts:
        """A column of texts.

        Raises:
            RequestError: there is none of this name; names `field` and the columns.
        """
        column = self._columns.get(name)
        if not isinstance(column, Texts):
            known = [n for n, c in self._columns.items() if isinstance(c, Texts)]
            raise RequestError("no such column of texts", where=field, remedy=choices(known))
        return column


def choices(names: Sequence[str]) -> str:
    """The remedy that lists columns, the first ten."""
    return f"the columns are {', '.join(names[:10])}" if names else "the bundle has no columns for it"


def merged(spans: Spans) -> Spans:
    """The same positions with overlapping and adjacent spans joined."""
    joined: Spans = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def opposite(spans: Spans, length: int) -> Spans:
    """The positions below `length` that lie in no span."""
    edges = [0, *(edge for span in spans for edge in span), length]
    return merged(list(zip(edges[::2], edges[1::2], strict=True)))


def _compared(sign: str, low: int, high: int, length: int) -> Spans:
    """Spans of a sign, where the equal values are from `low` to `high`."""
    spans: dict[str, Spans] = {
        "=": [(low, high)],
        "!=": [(0, low), (high, length)],
        "<": [(0, low)],
        "<=": [(0, high)],
        ">": [(high, length)],
        ">=": [(low, length)],
    }
    return merged(spans[sign])


def suits(column: Column, value: Value) -> bool:
    """Whether a column can be compared with a value."""
    return isinstance(value, str) == isinstance(column, Texts)


def _unfit(folder: Path) -> NoReturn:
    raise ArtifactError("the arrays do not fit together", where=str(folder), remedy="export the bundle again")
