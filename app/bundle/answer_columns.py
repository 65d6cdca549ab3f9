"""The columns of items as answers show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

from app.bundle.format.item_columns import choices
from app.bundle.format.shown_columns import ShownColumns
from app.bundle.new_items import NewItems
from app.bundle.request.requests import COLUMNS
from app.errors import RecipeError, RequestError
from app.events import Value

CHARACTERS = 1000  # of a text in a list of items


class ItemColumns:
    """The columns of items as answers show them: those that were put, else those of the bundle.

    Args:
        shown: of the bundle.
        new_items: that came, or changed, since.
        trained: rows of the bundle.
        default: names of the columns that are shown where a request names none.
    """

    def __init__(
        self, shown: ShownColumns, new_items: NewItems, trained: int, default: Sequence[str]
    ) -> None:
        self._shown, self._new_items, self._trained = shown, new_items, trained
        self.names = new_items.names
        self._default = [name for name in dict.fromkeys(default) if name in self.names]

    def check(self, names: Sequence[str] | None) -> None:
        """Refuse names that no column has.

        Raises:
            RequestError: names the first one's position.
        """
        if names is None:
            return
        if len(names) > COLUMNS:
            raise RequestError(f"{len(names)} of them", where="columns", remedy=f"name at most {COLUMNS}")
        for i, name in enumerate(names):
            if name not in self.names:
                raise RequestError("no such column", where=f"columns[{i}]", remedy=choices(self.names))

    def check_default(self, names: Sequence[str]) -> None:
        """Refuse columns of the recipe that no item of the bundle can have.

        Raises:
            RecipeError: names all of them, and the columns that there are.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            listed = ", ".join(map(repr, missing))
            remedy = f"{choices(self.names)}; export.columns says which a bundle takes along"
            raise RecipeError(f"the bundle has no column {listed}", where="serve.columns", remedy=remedy)

    def chosen(self, names: Sequence[str] | None) -> Sequence[str]:
        """The columns that a request asks for, by checked names; None: those that the service shows."""
        return self._default if names is None else names

    def of_rows(self, rows: Sequence[int], names: Sequence[str]) -> Iterable[dict[str, Value] | None]:
        """Of each item the columns that have a value, long texts cut; None where no column is asked for."""
        if not names:
            return repeat(None)
        return [{name: _cut(value) for name, value in self._values(row, names).items()} for row in rows]

    def all_of(self, row: int) -> dict[str, Value]:
        """All columns of an item that have a value."""
        return self._values(row, self.names)

    def _values(self, row: int, names: Sequence[str]) -> dict[str, Value]:
        put = self._new_items.values(row)
        if put is not None:
            values = {name: put.get(name) for name in names}
        elif 0 < row < self._trained:
            values = {name: self._shown.value(row, name) for name in names if name in self._shown.names}
        else:
            values = {}
        return {name: value for name, value in values.items() if value is not None}


def _cut(value: Value) -> Value:
    return f"{value[: CHARACTERS - 1]}…" if isinstance(value, str) and len(value) > CHARACTERS else value
