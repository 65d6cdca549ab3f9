"""The row filter of a recipe: app.features.expression over the columns of a polars frame.

    Quantity > 0 and not InvoiceNo like 'C%' and StockCode not in ['POST', 'M']

What a column is compared with decides the type: with a number, text that spells a number
counts as one; with quoted text, the column counts as text. Two columns compare as numbers
where both are. The row is not kept where the filter is neither true nor false.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import polars as pl

from app.data.values.text import as_number, as_text
from app.errors import RecipeError
from app.features import expression
from app.features.expression import Columns, Compare, In, Join, Leaf, Like, Node, Not, ParseError, Value

_COMPARE: dict[str, Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    "=": pl.Expr.eq, "!=": pl.Expr.ne, "<": pl.Expr.lt, "<=": pl.Expr.le, ">": pl.Expr.gt, ">=": pl.Expr.ge,
}  # fmt: skip
_KEEP = "\0keep"


@dataclass(frozen=True)
class Where:
    """A parsed filter: the columns that it names, and its conditions, which all have to hold."""

    columns: frozenset[str]
    conditions: tuple[Node, ...]

    def keep(self, frame: pl.DataFrame) -> pl.Series:
        """(N,) bool: rows for which the filter is true.

        Conditions on columns that the frame lacks do not count: given test files and feedback logs may
        lack what the event files have.
        """
        known = [c for c in self.conditions if expression.columns_of(c) <= set(frame.columns)]
        keep = pl.all_horizontal([pl.lit(True), *(_build(c, frame.schema).fill_null(False) for c in known)])
        return frame.with_columns(keep.alias(_KEEP))[_KEEP]


def parse(text: str, columns: tuple[str, ...] | None = None) -> Where:
    """Parse a filter; `columns` are the known ones, None accepts any.

    Raises:
        RecipeError: names the position, what was found and what was expected.
    """
    try:
        node = expression.parse(text, columns)
    except ParseError as error:
        known = f"; the columns are {', '.join(columns)}" if columns else ""
        raise RecipeError(
            f"{error.what}, {error.detail} at position {error.position} of {text!r}",
            where="data.where",
            remedy=f"write e.g. \"price > 0 and not code like 'C%'\"{known}",
        ) from None
    return Where(expression.columns_of(node), tuple(_conditions(node)))


def _conditions(node: Node) -> Iterator[Node]:
    if isinstance(node, Join) and node.word == "and":
        for part in node.parts:
            yield from _conditions(part)
    else:
        yield node


def _build(node: Node, schema: pl.Schema) -> pl.Expr:
    if isinstance(node, Not):
        return _build(node.inner, schema).not_()
    if isinstance(node, Join):
        parts = [_build(part, schema) for part in node.parts]
        return pl.all_horizontal(parts) if node.word == "and" else pl.any_horizontal(parts)
    return _leaf(node, schema)


def _leaf(node: Leaf, schema: pl.Schema) -> pl.Expr:
    if isinstance(node, Compare):
        return _compare(node.column, node.sign, node.value, schema)
    if isinstance(node, Columns):
        how, left, right = _COMPARE[node.sign], node.column, node.other
        numbers = how(as_number(left, schema), as_number(right, schema))
        return pl.coalesce(numbers, how(as_text(left, schema), as_text(right, schema)))
    if isinstance(node, In):
        return pl.any_horizontal([_compare(node.column, "=", value, schema) for value in node.values])
    if isinstance(node, Like):
        return as_text(node.column, schema).str.contains(node.regex)
    return as_text(node.column, schema).str.strip_chars().fill_null("") == ""


def _compare(column: str, sign: str, value: Value, schema: pl.Schema) -> pl.Expr:
    read = as_text if isinstance(value, str) else as_number
    return _COMPARE[sign](read(column, schema), pl.lit(value))
