"""Columns and filters of a bundle with the items that came, or changed, after training.

Their rows follow those of the bundle. A `Patch` does not change: a new item makes another one, with
columns and filters of its own that share those of the bundle, so that requests under way are not disturbed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from app.bundle.format.item_columns import Columns, Numbers, Texts
from app.bundle.format.layout import Array
from app.bundle.retrieval.item_filter import Filters, Match

Cell = float | str | None


class Patch:
    """The columns of some items, instead of what the bundle says of them.

    Args:
        items: rows in all, new ones counted.
        rows: (M,) those that are described here, ascending.
        cells: of each, by column; one without a value may be left out.
    """

    def __init__(self, items: int, rows: Array, cells: Sequence[Mapping[str, Cell]]) -> None:
        self.items, self.rows, self.cells = items, rows, cells

    def columns(self, base: Columns) -> Columns:
        """The described items alone as rows 1 to M, with the columns of a bundle."""
        columns: dict[str, Numbers | Texts] = {}
        for name in base.names:
            values = [cells.get(name) for cells in self.cells]
            kind = Texts if isinstance(base[name], Texts) else Numbers
            columns[name] = kind.from_values(values)  # type: ignore[arg-type]
        return Columns(1 + len(self.rows), columns)


class PatchedColumns(Columns):
    """Columns of a bundle with the items of a patch."""

    def __init__(self, base: Columns, patch: Patch) -> None:
        super().__init__(patch.items, {name: base[name] for name in base.names})
        self._patch = patch
        self._codes: dict[str, Array] = {}

    def codes(self, name: str, field: str) -> Array:
        """See Columns; a text that no item of the bundle has gets a code of its own."""
        column = self.texts(name, field)
        if name not in self._codes:
            codes = np.zeros(self.items, np.int64)
            codes[: len(column.codes)] = column.codes
            new_codes: dict[str, int] = {}
            for row, cells in zip(self._patch.rows.tolist(), self._patch.cells, strict=True):
                text = str(cells.get(name) or "")
                new_code = column.count + 1 + len(new_codes)
                codes[row] = column.code(text) or new_codes.setdefault(text, new_code)
                codes[row] *= text != ""
            self._codes[name] = codes
        return self._codes[name]


class PatchedFilters(Filters):
    """Filters over the columns of a bundle with the items of a patch."""

    def __init__(self, base: Filters, columns: Columns, patch: Patch) -> None:
        super().__init__(columns)
        self._base, self._patch, self._parsed = base, patch, base._parsed

    def _evaluate(self, text: str) -> Match:
        mask, base = np.zeros(self._patch.items, bool), self._base.match(text).mask
        mask[: len(base)] = base
        mask[self._patch.rows] = self._described.match(text).mask[1:]
        return Match(mask)

    @cached_property
    def _described(self) -> Filters:
        return Filters(self._patch.columns(self._columns))
