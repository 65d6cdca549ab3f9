"""A small, safe language of conditions over columns, parsed into a tree.

    price < 20 and category in ['a', 'b'] and not code like 'C%'

Comparisons (= == != <> < <= > >=), in [...], like 'C%' (% any text, _ one character),
is null, is not null; and, or, not, parentheses. Names with spaces go in backticks. As in
SQL, a comparison with a missing value is neither true nor false. A number is what it says:
one that no float holds is an int or a Decimal. The row filter of recipes and the filter of
requests share the language, and each says what a comparison means.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NoReturn

DEEPEST = 50  # parentheses and `not` within each other
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|(?P<text>'(?:[^']|'')*')"
    r"|(?P<quoted>`[^`]+`)|(?P<sign><=|>=|!=|<>|==|=|<|>|\(|\)|\[|\]|,)|(?P<word>[^\W\d][\w.]*))"
)
_WORDS = ("and", "or", "not", "in", "like", "is", "null")
_SIGNS = {"=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}

Number = float | int | Decimal  # int and Decimal only where no float is the number
Value = Number | str


@dataclass(frozen=True)
class Compare:
    """A column and a value; `sign` is one of = != < <= > >=."""

    column: str
    sign: str
    value: Value


@dataclass(frozen=True)
class Columns:
    """Two columns that are compared; `sign` is one of = != < <= > >=."""

    column: str
    sign: str
    other: str


@dataclass(frozen=True)
class In:
    """A column equals one of some values."""

    column: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Like:
    """A column matches a pattern."""

    column: str
    pattern: str

    @property
    def regex(self) -> str:
        """The pattern as a regular expression over the whole text, for engines that do not backtrack."""
        parts = {"%": ".*", "_": "."}
        return "^(?s:" + "".join(parts.get(c) or re.escape(c) for c in self.pattern) + ")$"

    @property
    def prefix(self) -> str:
        """The text that everything that matches starts with."""
        return re.split("[%_]", self.pattern, maxsplit=1)[0]

    @property
    def parts(self) -> list[str]:
        """What stands between the %; of several % that follow each other one counts."""
        return re.split("%+", self.pattern)

    def matcher(self) -> Callable[[str], bool]:
        """A function that says whether a text matches, in time linear in the text plus the number of parts.

        Between two % the first position that fits is as good as any later one, so nothing is tried twice.
        """
        first, *rest = [
            re.compile("".join("." if c == "_" else re.escape(c) for c in part), re.DOTALL)
            for part in self.parts
        ]
        last = len(self.pattern.rpartition("%")[2])

        def matches(text: str) -> bool:
            if not rest:
                return first.fullmatch(text) is not None
            match = first.match(text)
            for part in rest[:-1]:
                if match is None:
                    return False
                match = part.search(text, match.end())
            start = len(text) - last
            return match is not None and match.end() <= start and rest[-1].match(text, start) is not None

        return matches


@dataclass(frozen=True)
class Null:
    """The value of a column is missing."""

    column: str


@dataclass(frozen=True)
class Not:
    """The negation of a condition; unknown where the condition is."""

    inner: Node


@dataclass(frozen=True)
class Join:
    """All of the parts hold (`word` "and"), or any of them ("or")."""

    word: str
    parts: tuple[Node, ...]


Leaf = Compare | Columns | In | Like | Null
Node = Leaf | Not | Join


class ParseError(Exception):
    """A text that is not a condition.

    Args:
        what: what is wrong, or was expected; holds nothing of the text itself.
        detail: the words of the text that are wrong, for a reader who may see the text.
        position: of these words in the text, from 1.
    """

    def __init__(self, what: str, detail: str, position: int) -> None:
        super().__init__(what, detail, position)
        self.what, self.detail, self.position = what, detail, position


def parse(text: str, columns: Sequence[str] | None = None) -> Node:
    """Parse a condition; `columns` are the known ones, None accepts any.

    Raises:
        ParseError: says what was expected, and at which position.
    """
    parser = _Parser(text, columns)
    node = parser.either()
    if parser.next.kind != "end":
        parser.fail("expected `and`, `or` or the end")
    return node


def quoted(column: str) -> str:
    """The name of a column as conditions write it: in backticks unless it is a plain word."""
    plain = re.fullmatch(r"[^\W\d][\w.]*", column) and column.lower() not in _WORDS
    return column if plain else f"`{column}`"


def columns_of(node: Node) -> frozenset[str]:
    """The columns that a condition names, anywhere in its tree."""
    if isinstance(node, Not):
        return columns_of(node.inner)
    if isinstance(node, Join):
        return frozenset().union(*map(columns_of, node.parts))
    return frozenset({node.column, node.other} if isinstance(node, Columns) else {node.column})


@dataclass(frozen=True)
class _Token:
    kind: str  # number, text, name, or the sign or word itself; "end"
    value: str
    position: int


class _Parser:
    def __init__(self, text: str, columns: Sequence[str] | None) -> None:
        self.text, self.columns = text, columns
        self.tokens = self._split()
        self.index = self.depth = 0

    def _split(self) -> list[_Token]:
        tokens, position, text = [], 0, self.text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                start = position + len(text[position:]) - len(text[position:].lstrip())
                raise ParseError("cannot read", repr(text[start : start + 10]), start + 1)
            kind, value = str(match.lastgroup), match[str(match.lastgroup)]
            if kind == "quoted":
                kind, value = "name", value[1:-1]
            elif kind == "text":
                value = value[1:-1].replace("''", "'")
            elif kind == "word":
                kind = value.lower() if value.lower() in _WORDS else "name"
            elif kind == "sign":
                kind = value
            tokens.append(_Token(kind, value, match.start(str(match.lastgroup))))
            position = match.end()
        return [*tokens, _Token("end", "", len(text))]

    @property
    def next(self) -> _Token:
        return self.tokens[self.index]

    def fail(self, expected: str) -> NoReturn:
        next_words = "the end" if self.next.kind == "end" else repr(self.next.value)
        raise ParseError(expected, f"found {next_words}", self.next.position + 1)

    def take(self, *kinds: str) -> _Token | None:
        if self.next.kind not in kinds:
            return None
        self.index += 1
        return self.tokens[self.index - 1]

    def need(self, what: str, *kinds: str) -> _Token:
        return self.take(*kinds) or self.fail(f"expected {what}")

    def either(self) -> Node:
        parts = [self.both()]
        while self.take("or"):
            parts.append(self.both())
        return Join("or", tuple(parts)) if len(parts) > 1 else parts[0]

    def both(self) -> Node:
        parts = [self.term()]
        while self.take("and"):
            parts.append(self.term())
        return Join("and", tuple(parts)) if len(parts) > 1 else parts[0]

    def term(self) -> Node:
        self.depth += 1
        if self.depth > DEEPEST:
            self.fail(f"expected at most {DEEPEST} parentheses and `not` within each other")
        node: Node
        if self.take("not"):
            node = Not(self.term())
        elif self.take("("):
            node = self.either()
            self.need("`)`", ")")
        else:
            node = self.comparison()
        self.depth -= 1
        return node

    def comparison(self) -> Node:
        column = self.column(self.need("a column, `not` or `(`", "name"))
        if self.take("is"):
            negated = bool(self.take("not"))
            self.need("`null`", "null")
            return Not(Null(column)) if negated else Null(column)
        negated = bool(self.take("not"))
        word = self.take("in", "like")
        if word:
            inner = In(column, self.values()) if word.kind == "in" else self.like(column)
            return Not(inner) if negated else inner
        sign = self.need("a comparison, `in`, `like` or `is`", *(() if negated else _SIGNS))
        right = self.need("a number, 'text' or a column", "number", "text", "name")
        if right.kind == "name":
            return Columns(column, _SIGNS[sign.kind], self.column(right))
        return Compare(column, _SIGNS[sign.kind], _value(right))

    def column(self, token: _Token) -> str:
        if self.columns is not None and token.value not in self.columns:
            close = difflib.get_close_matches(token.value, self.columns, 1)
            close += [c for c in self.columns if c.startswith(f"{token.value} ")]
            written = [repr(c) if quoted(c) == c else quoted(c) for c in close[:1]]
            hint = f" (did you mean {written[0]}?)" if written else ""
            raise ParseError("no such column", f"{token.value!r}{hint}", token.position + 1)
        return token.value

    def values(self) -> tuple[Value, ...]:
        self.need("`[`", "[", "(")
        tokens = [self.need("a number or 'text'", "number", "text")]
        while self.take(","):
            tokens.append(self.need("a number or 'text'", "number", "text"))
        self.need("`]`", "]", ")")
        return tuple(map(_value, tokens))

    def like(self, column: str) -> Like:
        return Like(column, self.need("'text'", "text").value)


def _value(token: _Token) -> Value:
    return _number(token.value) if token.kind == "number" else token.value


def _number(text: str) -> Number:
    rounded = float(text)
    if not 1e-300 < abs(rounded) < 1e300:
        return rounded
    exact = Decimal(text)
    if Decimal(repr(rounded)) == exact:  # the shortest text of the float is the number that was written
        return rounded
    return int(exact) if exact == exact.to_integral_value() else exact
