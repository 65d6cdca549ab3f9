"""The filter of a request: app.features.expression over indexed columns, giving the items it holds for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any, Generic, TypeVar

import numpy as np

from app.bundle.format.item_columns import Columns, Numbers, Spans, Texts, choices, merged, opposite, suits
from app.bundle.format.layout import Array
from app.errors import RequestError
from app.features import expression
from app.features.expression import Compare, In, Join, Leaf, Like, Mistake, Node, Not, Null

CONDITIONS = 32  # comparisons of a filter: each may touch every item
CACHE_BYTES = 32 << 20
PARSED = 1024  # filters kept parsed

_TWO: dict[str, Callable[[Array, Array], Array]] = {
    "=": np.equal, "!=": np.not_equal, "<": np.less, "<=": np.less_equal,
    ">": np.greater, ">=": np.greater_equal,
}  # fmt: skip
T = TypeVar("T")


@dataclass(frozen=True)
class Match:
    """The items that a filter holds for: `mask` (items,) bool, False for row 0."""

    mask: Array

    @cached_property
    def rows(self) -> Array:
        """Ascending."""
        return np.flatnonzero(self.mask)

    @cached_property
    def count(self) -> int:
        """How many."""
        return int(np.count_nonzero(self.mask))


class Filters:
    """Parses filters and finds what they hold for; remembers both. Safe to use from several threads."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._parsed: _Recent[Node] = _Recent(PARSED)
        self._matches: _Recent[Match] = _Recent(max(2, CACHE_BYTES // max(1, columns.items)))

    def check(self, text: str, field: str) -> None:
        """Parse a filter.

        Raises:
            RequestError: names `field`, and the columns where one is unknown; never the text itself.
        """
        self._parsed.get(text, lambda: self._parse(text, field))

    def match(self, text: str) -> Match:
        """What a checked filter holds for."""
        node = self._parsed.get(text, lambda: self._parse(text, "filter"))
        return self._matches.get(text, lambda: Match(self._mask(node, True)))

    def _parse(self, text: str, field: str) -> Node:
        try:
            node = expression.parse(text, self._columns.names)
        except Mistake as mistake:
            unknown = mistake.what == "no such column"
            remedy = choices(self._columns.names) if unknown else "write e.g. price < 20 and category = 'a'"
            raise RequestError(
                f"{mistake.what} at position {mistake.position}", where=field, remedy=remedy
            ) from None
        leaves = _leaves(node)
        if len(leaves) > CONDITIONS:
            raise RequestError(
                f"{len(leaves)} comparisons",
                where=field,
                remedy=f"use at most {CONDITIONS}; `in` counts once",
            )
        for leaf in leaves:
            self._check(leaf, field)
        return node

    def _check(self, leaf: Leaf, field: str) -> None:
        column = self._columns[leaf.column]
        if isinstance(leaf, Like):
            self._like(leaf, field)
        elif isinstance(leaf, expression.Columns):
            if not isinstance(column, Numbers) or not isinstance(self._columns[leaf.other], Numbers):
                raise RequestError("not two columns of numbers", where=field, remedy="compare with a value")
        elif isinstance(leaf, Compare | In):
            values = leaf.values if isinstance(leaf, In) else (leaf.value,)
            if not all(suits(column, value) for value in values):
                remedy = "quote the values" if isinstance(column, Texts) else "compare it with numbers"
                raise RequestError(f"{leaf.column} holds {column.kind}s", where=field, remedy=remedy)

    def _like(self, leaf: Like, field: str = "filter") -> Spans:
        column = self._columns[leaf.column]
        if not isinstance(column, Texts):
            raise RequestError(f"{leaf.column} holds numbers", where=field, remedy="compare it with numbers")
        try:
            return column.like(leaf)
        except ValueError:
            what = f"{leaf.column} has too many texts for this pattern"
            raise RequestError(what, where=field, remedy="let it start with letters") from None

    def _mask(self, node: Node, wanted: bool) -> Array:
        """(items,) where a condition is known to be `wanted`; what is missing is in neither."""
        if isinstance(node, Not):
            return self._mask(node.inner, not wanted)
        if isinstance(node, Join):
            join = np.logical_and if (node.word == "and") == wanted else np.logical_or
            mask = self._mask(node.parts[0], wanted)
            for part in node.parts[1:]:
                join(mask, self._mask(part, wanted), out=mask)
            return mask
        if isinstance(node, expression.Columns):
            return self._two(node, wanted)
        column = self._columns[node.column]
        if isinstance(node, Null):
            return self._filled(column.rows, [(0, len(column.rows))], not wanted)
        spans = self._spans(node)
        return self._filled(column.rows, spans if wanted else opposite(spans, len(column.rows)), True)

    def _filled(self, rows: Array, spans: Spans, value: bool) -> Array:
        mask = np.full(self._columns.items, not value)
        for start, stop in spans:
            mask[rows[start:stop]] = value
        mask[0] = False
        return mask

    def _spans(self, leaf: Compare | In | Like) -> Spans:
        column: Any = self._columns[leaf.column]
        if isinstance(leaf, Like):
            return self._like(leaf)
        if isinstance(leaf, In):
            return merged([span for value in leaf.values for span in column.spans("=", value)])
        found: Spans = column.spans(leaf.sign, leaf.value)
        return found

    def _two(self, leaf: expression.Columns, wanted: bool) -> Array:
        left, right = (self._columns[name].by_row(self._columns.items) for name in (leaf.column, leaf.other))  # type: ignore[union-attr]
        known = ~(np.isnan(left) | np.isnan(right))
        found: Array = known & (_TWO[leaf.sign](left, right) == wanted)
        return found


class _Recent(Generic[T]):
    """Values by text; those used last stay, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, Lock()
        self._held: OrderedDict[str, T] = OrderedDict()

    def get(self, text: str, make: Callable[[], T]) -> T:
        """The value of a text, made where it is not held."""
        with self._lock:
            if text in self._held:
                self._held.move_to_end(text)
                return self._held[text]
        made = make()
        with self._lock:
            self._held[text] = made
            while len(self._held) > self._limit:
                self._held.popitem(last=False)
        return made


def _leaves(node: Node) -> list[Leaf]:
    if isinstance(node, Not):
        return _leaves(node.inner)
    if isinstance(node, Join):
        return [leaf for part in node.parts for leaf in _leaves(part)]
    return [node]
