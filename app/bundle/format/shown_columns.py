"""The values of the items' columns by row, as answers show them.

columns/
  shown.json         [name, …]: the columns that neither filters nor caps know, such as titles
  shown/N/           Strings: the text of each row, "" where it has none

Those that filters know are read from their own files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from app.bundle.format.item_columns import Columns, Numbers, Texts
from app.bundle.format.layout import Array, damaged, load_array
from app.events import Value
from app.tables.strings import Strings


class ShownColumns:
    """Columns of the items by row. Safe to use from several threads.

    Args:
        columns: that filters know.
        prose: texts by row of the other columns.
    """

    def __init__(self, columns: Columns, prose: Mapping[str, Strings]) -> None:
        self._columns, self._prose = columns, prose
        self._numbers: dict[str, Array] = {}  # by row; made when a column is first shown
        self.names = list(dict.fromkeys([*columns.names, *prose]))

    @classmethod
    def open(cls, folder: Path, columns: Columns) -> ShownColumns:
        """Map what a bundle's columns/ has for answers alone; an older bundle has nothing of it.

        Raises:
            ArtifactError: a file is missing, truncated or does not fit the others.
        """
        path = folder / "shown.json"
        if not path.exists():
            return cls(columns, {})
        try:
            names = msgspec.json.decode(path.read_bytes(), type=list[str])
        except msgspec.MsgspecError as error:
            raise damaged(path, str(error)) from None
        prose = {name: _open_texts(folder / "shown" / str(n), columns.items) for n, name in enumerate(names)}
        return cls(columns, prose)

    def value(self, row: int, name: str) -> Value:
        """The value of an item of the bundle in a column; None where it has none."""
        if name in self._prose:
            return self._prose[name][row] or None
        column = self._columns[name]
        if isinstance(column, Texts):
            return column.text(row)
        number = float(self._by_row(name, column)[row])
        if number != number:  # NaN
            return None
        return int(number) if number.is_integer() else number

    def _by_row(self, name: str, column: Numbers) -> Array:
        values = self._numbers.get(name)
        if values is None:
            values = self._numbers[name] = column.by_row(self._columns.items)
        return values


def _open_texts(folder: Path, items: int) -> Strings:
    offsets, data = load_array(folder / "offsets.npy"), load_array(folder / "bytes.npy")
    if len(offsets) != items + 1 or offsets[-1] != len(data):
        raise damaged(folder, f"{len(offsets) - 1} texts for {items} items")
    return Strings(offsets, data)
