"""The row filter of a recipe: app.features.expression over the columns of a polars frame.

    Quantity > 0 and not InvoiceNo like 'C%' and StockCode not in ['POST', 'M']

What a column is compared with decides the type: with a number, text that spells a number
counts as one; with quoted text, the column counts as text. Two columns compare as numbers
where both are. Whole numbers and decimals compare exactly, however many digits they have.
The row is not kept where the filter is neither true nor false.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

import polars as pl

from app.data.values.text import as_text, number_of, plain
from app.errors import RecipeError
from app.features import expression
from app.features.expression import Columns, Compare, In, Join, Leaf, Like, Node, Not, ParseError, Value
from app.recipe.data import MISSING_WORDS

_COMPARE: dict[str, Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    "=": pl.Expr.eq, "!=": pl.Expr.ne, "<": pl.Expr.lt, "<=": pl.Expr.le, ">": pl.Expr.gt, ">=": pl.Expr.ge,
}  # fmt: skip
_KEEP = "\0keep"
_NONE: Mapping[str, pl.Series] = MappingProxyType({})
_NUMBER = (float, int, Decimal)
_EXACT = 2**53  # whole numbers beyond it are no floats
_DIGITS, _SCALE = 38, 18  # of polars' decimals: digits, and places that a text may have


@dataclass(frozen=True)
class Where:
    """A parsed filter: the columns that it names, and its conditions, which all have to hold.

    `decimal` stands before the decimals of numbers in text; `words` mean that a value is missing.
    """

    columns: frozenset[str]
    conditions: tuple[Node, ...]
    decimal: str = "."
    words: tuple[str, ...] = MISSING_WORDS

    @property
    def numbers(self) -> list[str]:
        """Columns that are compared with numbers and never with texts, each once, in order."""
        leaves = [leaf for node in self.conditions for leaf in _leaves(node)]
        as_texts = {leaf.column for leaf in leaves if _compared_with(leaf, str) or isinstance(leaf, Like)}
        columns = dict.fromkeys(leaf.column for leaf in leaves if _compared_with(leaf, _NUMBER))
        return [column for column in columns if column not in as_texts]

    def keep(self, frame: pl.DataFrame, numbers: Mapping[str, pl.Series] = _NONE) -> pl.Series:
        """(N,) bool: rows for which the filter is true; `numbers` are those of columns, where known.

        Conditions on columns that the frame lacks do not count: given test files and feedback logs may
        lack what the event files have.
        """
        known = [c for c in self.conditions if expression.columns_of(c) <= set(frame.columns)]
        leaves = [leaf for node in known for leaf in _leaves(node)]
        names = {name for node in known for name in expression.columns_of(node)}
        read = frame.with_columns(plain(frame[name]) for name in names)
        numeric = {leaf.column for leaf in leaves if _compared_with(leaf, _NUMBER)}
        numeric |= {
            name for leaf in leaves if isinstance(leaf, Columns) for name in (leaf.column, leaf.other)
        }
        read = read.with_columns(
            (numbers[name] if name in numbers else number_of(read[name], self.decimal)).alias(_number(name))
            for name in numeric
        )
        build = _Builder(read.schema, self)
        keep = pl.all_horizontal([pl.lit(True), *(build.condition(c).fill_null(False) for c in known)])
        return read.with_columns(keep.alias(_KEEP))[_KEEP]


def parse(
    text: str,
    columns: Sequence[str] | None = None,
    decimal: str = ".",
    words: Sequence[str] = MISSING_WORDS,
) -> Where:
    """Parse a filter; `columns` are the known ones, None accepts any.

    Raises:
        RecipeError: names the position, what was found and what was expected.
    """
    try:
        node = expression.parse(text, columns)
    except ParseError as error:
        known = f"; the columns are {', '.join(map(expression.quoted, columns))}" if columns else ""
        blanks = "; a name with blanks stands in backticks: `unit price`" if "`" not in known else ""
        raise RecipeError(
            f"{error.what}, {error.detail} at position {error.position} of {text!r}",
            where="data.where",
            remedy=f"write e.g. \"price > 0 and not code like 'C%'\"{blanks}{known}",
        ) from None
    return Where(expression.columns_of(node), tuple(_conditions(node)), decimal, tuple(words))


def _conditions(node: Node) -> Iterator[Node]:
    if isinstance(node, Join) and node.word == "and":
        for part in node.parts:
            yield from _conditions(part)
    else:
        yield node


def _leaves(node: Node) -> Iterator[Leaf]:
    if isinstance(node, Not):
        yield from _leaves(node.inner)
    elif isinstance(node, Join):
        for part in node.parts:
            yield from _leaves(part)
    else:
        yield node


def _compared_with(leaf: Leaf, kind: type | tuple[type, ...]) -> bool:
    values = leaf.values if isinstance(leaf, In) else [leaf.value] if isinstance(leaf, Compare) else []
    return any(isinstance(value, kind) for value in values)


def _number(column: str) -> str:
    """Name of the column that holds another one's numbers."""
    return f"\0number {column}"


@dataclass(frozen=True)
class _Builder:
    """Builds expressions over a frame that has the numbers of columns beside the columns."""

    schema: pl.Schema
    where: Where

    def condition(self, node: Node) -> pl.Expr:
        if isinstance(node, Not):
            return self.condition(node.inner).not_()
        if isinstance(node, Join):
            parts = [self.condition(part) for part in node.parts]
            return pl.all_horizontal(parts) if node.word == "and" else pl.any_horizontal(parts)
        return self._leaf(node)

    def _leaf(self, node: Leaf) -> pl.Expr:
        if isinstance(node, Compare):
            return self._compare(node.column, node.sign, node.value)
        if isinstance(node, Columns):
            return self._columns(node)
        if isinstance(node, In):
            return pl.any_horizontal([self._compare(node.column, "=", value) for value in node.values])
        text = as_text(node.column, self.schema)
        if isinstance(node, Like):
            return text.str.contains(node.regex)
        return text.str.strip_chars().fill_null("").is_in(["", *self.where.words])

    def _columns(self, node: Columns) -> pl.Expr:
        how, left, right = _COMPARE[node.sign], node.column, node.other
        numbers = how(pl.col(_number(left)), pl.col(_number(right)))
        exact = how(self._exact(left, 0), self._exact(right, 0))
        return pl.coalesce(exact, numbers, how(as_text(left, self.schema), as_text(right, self.schema)))

    def _compare(self, column: str, sign: str, value: Value) -> pl.Expr:
        how = _COMPARE[sign]
        if isinstance(value, str):
            return how(as_text(column, self.schema), pl.lit(value))
        number = how(pl.col(_number(column)), pl.lit(float(value)))
        decimal = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
        small = isinstance(value, float) and abs(value) < _EXACT and not self.schema[column].is_decimal()
        if small or len(decimal.as_tuple().digits) > _DIGITS or abs(decimal) >= 10**_DIGITS:
            return number
        whole = decimal == decimal.to_integral_value()
        return pl.coalesce(how(self._exact(column, 0 if whole else _SCALE), pl.lit(decimal)), number)

    def _exact(self, column: str, scale: int) -> pl.Expr:
        """The column as decimals, of a text `scale` places; null where a float says all there is."""
        kind, it = self.schema[column], pl.col(column)
        if kind.is_decimal():
            return it
        if kind == pl.String and self.where.decimal == ".":
            text = it.str.strip_chars()
            it = text if scale else text.cast(pl.Int128, strict=False)  # null for 1.5, which has places
        elif not kind.is_integer():
            return pl.lit(None, pl.Decimal(_DIGITS, 0))
        return it.cast(pl.Decimal(_DIGITS, scale if kind == pl.String else 0), strict=False)
