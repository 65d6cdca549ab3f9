"""Values that should be numbers and are none: a few are said, a column of them is refused."""

from __future__ import annotations

from collections.abc import Sequence

from app.data.prepare.clean import Note
from app.data.values.numbers import has_comma
from app.errors import DataError
from app.recipe import Data
from app.terminal.console import say

_REMEDIES = {
    "value": "map data.value to a column of numbers, or leave it out",
    "outlier": "name a column of numbers in data.outliers",
    "where": "quote what data.where compares it with, to compare texts, or name a column of numbers",
    "attribute": "name a column of numbers, or use a feature of another kind for it",
}


def refuse_strange(notes: Sequence[tuple[Note, str]], data: Data) -> None:
    """Say of each column that a few values are no numbers; refuse one where more than half are none.

    Args:
        notes: on columns that should hold numbers, each with file and row of the first that is none.
        data: of the recipe.

    Raises:
        DataError: most values of a column are no numbers.
    """
    by_column: dict[tuple[str, str], list[tuple[Note, str]]] = {}
    for note, where in notes:
        by_column.setdefault((note.kind, note.column), []).append((note, where))
    for (kind, column), of_column in by_column.items():
        bad, good = (sum(getattr(note, name) for note, _ in of_column) for name in ("bad", "good"))
        first, where = next((pair for pair in of_column if pair[0].bad), of_column[0])
        if not bad:
            continue
        comma = data.decimal == "." and has_comma(first.value)
        example = f"{column} = {first.value!r} is not a number"
        if bad > good:
            remedy = 'set data.decimal = ","' if comma else _REMEDIES[kind]
            raise DataError(f"{example}, nor are most values of this column", where=where, remedy=remedy)
        hint = ' (data.decimal = "," makes them numbers)' if comma else ""
        say(f"{where}: {example}; {bad} such values count as missing{hint}")
