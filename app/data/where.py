"""The row filter: a small, safe expression language over columns.

    Quantity > 0 and not InvoiceNo like 'C%' and StockCode not in ['POST', 'M']

Comparisons (= == != <> < <= > >=), in [...], like 'C%' (% any text, _ one character),
is null, is not null; and, or, not, parentheses. Names with spaces go in backticks. What a
column is compared with decides the type: with a number, text that spells a number counts
as one; with quoted text, the column counts as text. Two columns compare as numbers where
both are. As in SQL, a comparison with a missing value is neither true nor false, and the
row is not kept.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import polars as pl

from app.data.text import as_number, as_text
from app.errors import RecipeError

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|(?P<text>'(?:[^']|'')*')"
    r"|(?P<quoted>`[^`]+`)|(?P<sign><=|>=|!=|<>|==|=|<|>|\(|\)|\[|\]|,)|(?P<word>[^\W\d][\w.]*))"
)
_WORDS = ("and", "or", "not", "in", "like", "is", "null")
_COMPARE: dict[str, Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    "=": pl.Expr.eq, "==": pl.Expr.eq, "!=": pl.Expr.ne, "<>": pl.Expr.ne,
    "<": pl.Expr.lt, "<=": pl.Expr.le, ">": pl.Expr.gt, ">=": pl.Expr.ge,
}  # fmt: skip

_KEEP = "\0keep"


@dataclass(frozen=True)
class _Token:
    kind: str  # number, text, name, or the sign or word itself; "end"
    value: str
    position: int


@dataclass(frozen=True)
class Where:
    """A parsed filter: the columns it names, and the expression over a frame's schema."""

    columns: frozenset[str]
    build: Callable[[pl.Schema], pl.Expr]

    def keep(self, frame: pl.DataFrame) -> pl.Series:
        """(N,) bool: rows for which the filter is true."""
        return frame.with_columns(self.build(frame.schema).fill_null(False).alias(_KEEP))[_KEEP]


_Build = Callable[[pl.Schema], pl.Expr]


def parse(text: str, columns: tuple[str, ...] | None = None) -> Where:
    """Parse a filter; `columns` are the known ones, None accepts any.

    Raises:
        RecipeError: names the position, what was found and what was expected.
    """
    parser = _Parser(text, columns)
    build = parser.either()
    if parser.next.kind != "end":
        parser.fail("expected `and`, `or` or the end")
    return Where(frozenset(parser.used), build)


class _Parser:
    def __init__(self, text: str, columns: tuple[str, ...] | None) -> None:
        self.text, self.columns, self.used = text, columns, set[str]()
        self.tokens = self._split()
        self.index = 0

    def _split(self) -> list[_Token]:
        found, position, text = [], 0, self.text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                start = position + len(text[position:]) - len(text[position:].lstrip())
                self._fail(start, f"cannot read {text[start : start + 10]!r}")
            kind, value = str(match.lastgroup), match[str(match.lastgroup)]
            if kind == "quoted":
                kind, value = "name", value[1:-1]
            elif kind == "text":
                value = value[1:-1].replace("''", "'")
            elif kind == "word":
                kind = value.lower() if value.lower() in _WORDS else "name"
            elif kind == "sign":
                kind = value
            found.append(_Token(kind, value, match.start(str(match.lastgroup))))
            position = match.end()
        return [*found, _Token("end", "", len(text))]

    @property
    def next(self) -> _Token:
        return self.tokens[self.index]

    def fail(self, expected: str) -> NoReturn:
        found = "the end" if self.next.kind == "end" else repr(self.next.value)
        self._fail(self.next.position, f"{expected}, found {found}")

    def _fail(self, position: int, what: str) -> NoReturn:
        known = f"; the columns are {', '.join(self.columns)}" if self.columns else ""
        raise RecipeError(
            f"{what} at position {position + 1} of {self.text!r}",
            where="data.where",
            remedy=f"write e.g. \"price > 0 and not code like 'C%'\"{known}",
        )

    def take(self, *kinds: str) -> _Token | None:
        if self.next.kind not in kinds:
            return None
        self.index += 1
        return self.tokens[self.index - 1]

    def need(self, what: str, *kinds: str) -> _Token:
        return self.take(*kinds) or self.fail(f"expected {what}")

    def either(self) -> _Build:
        left = self.both()
        while self.take("or"):
            left = _join(left, self.both(), pl.Expr.or_)
        return left

    def both(self) -> _Build:
        left = self.term()
        while self.take("and"):
            left = _join(left, self.term(), pl.Expr.and_)
        return left

    def term(self) -> _Build:
        if self.take("not"):
            inner = self.term()
            return lambda schema: inner(schema).not_()
        if self.take("("):
            inner = self.either()
            self.need("`)`", ")")
            return inner
        return self.comparison()

    def comparison(self) -> _Build:
        column = self.column(self.need("a column, `not` or `(`", "name"))
        if self.take("is"):
            negated = bool(self.take("not"))
            self.need("`null`", "null")
            return _null(column, negated)
        negated = bool(self.take("not"))
        word = self.take("in", "like")
        if word:
            inner = _in(column, self.values()) if word.kind == "in" else self.like(column)
            return (lambda schema: inner(schema).not_()) if negated else inner
        sign = self.need("a comparison, `in`, `like` or `is`", *(() if negated else _COMPARE))
        compare, right = (
            _COMPARE[sign.kind],
            self.need("a number, 'text' or a column", "number", "text", "name"),
        )
        if right.kind == "name":
            return _columns(column, self.column(right), compare)
        return _literal(column, right, compare)

    def column(self, token: _Token) -> str:
        if self.columns is not None and token.value not in self.columns:
            close = difflib.get_close_matches(token.value, self.columns, 1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            self._fail(token.position, f"no column {token.value!r}{hint}")
        self.used.add(token.value)
        return token.value

    def values(self) -> list[_Token]:
        self.need("`[`", "[", "(")
        found = [self.need("a number or 'text'", "number", "text")]
        while self.take(","):
            found.append(self.need("a number or 'text'", "number", "text"))
        self.need("`]`", "]", ")")
        return found

    def like(self, column: str) -> _Build:
        pattern = self.need("'text'", "text").value
        parts = {"%": ".*", "_": "."}
        regex = "^(?s:" + "".join(parts.get(c) or re.escape(c) for c in pattern) + ")$"
        return lambda schema: as_text(column, schema).str.contains(regex)


def _join(left: _Build, right: _Build, how: Callable[[pl.Expr, pl.Expr], pl.Expr]) -> _Build:
    return lambda schema: how(left(schema), right(schema))


def _literal(column: str, token: _Token, compare: Callable[[pl.Expr, pl.Expr], pl.Expr]) -> _Build:
    if token.kind == "number":
        return lambda schema: compare(as_number(column, schema), pl.lit(float(token.value)))
    return lambda schema: compare(as_text(column, schema), pl.lit(token.value))


def _columns(left: str, right: str, compare: Callable[[pl.Expr, pl.Expr], pl.Expr]) -> _Build:
    def build(schema: pl.Schema) -> pl.Expr:
        numbers = compare(as_number(left, schema), as_number(right, schema))
        return pl.coalesce(numbers, compare(as_text(left, schema), as_text(right, schema)))

    return build


def _in(column: str, values: list[_Token]) -> _Build:
    def build(schema: pl.Schema) -> pl.Expr:
        each = [_literal(column, value, pl.Expr.eq)(schema) for value in values]
        return pl.any_horizontal(each)

    return build


def _null(column: str, negated: bool) -> _Build:
    def build(schema: pl.Schema) -> pl.Expr:
        missing = as_text(column, schema).str.strip_chars().fill_null("") == ""
        return missing.not_() if negated else missing

    return build
