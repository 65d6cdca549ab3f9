"""The filter of a request: app.features.expression over indexed columns, giving the items it holds for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from app.bundle.byte_cache import ByteBoundedCache
from app.bundle.format.item_columns import Columns, Numbers, Spans, Texts, choices, merged, opposite, suits
from app.bundle.format.layout import Array
from app.errors import RequestError
from app.features import expression
from app.features.expression import Compare, In, Join, Leaf, Like, Node, Not, Null, ParseError

CONDITIONS = 32  # comparisons of a filter: each may touch every item
# Parts of texts that the patterns of a filter are compared with, known before any is: some 50 ms.
PATTERN_STEPS = 200_000
MATCH_BYTES = 32 << 20  # of cached matches, though at least two are cached
MATCH_OVERHEAD = 100
PARSED_BYTES = 8 << 20  # of cached parsed filters
PARSED_CHARACTER, PARSED_OVERHEAD = 64, 1000  # bytes of a parsed filter, at most about

_TWO: dict[str, Callable[[Array, Array], Array]] = {
    "=": np.equal, "!=": np.not_equal, "<": np.less, "<=": np.less_equal,
    ">": np.greater, ">=": np.greater_equal,
}  # fmt: skip


@dataclass(frozen=True)
class Match:
    """The items that a filter holds for: `mask` (items,) bool, False for row 0."""

    mask: Array

    @cached_property
    def rows(self) -> Array:
        """The items that match, ascending."""
        return np.flatnonzero(self.mask)

    @cached_property
    def count(self) -> int:
        """The number of items that match."""
        return int(np.count_nonzero(self.mask))


class Filters:
    """Parses filters and finds what they hold for; caches both. Safe to use from several threads."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._parsed: ByteBoundedCache[str, Node] = ByteBoundedCache(PARSED_BYTES)
        two = 2 * (columns.items + MATCH_OVERHEAD)
        self._matches: ByteBoundedCache[str, Match] = ByteBoundedCache(max(MATCH_BYTES, two))

    def check(self, text: str, field: str) -> None:
        """Parse a filter.

        Raises:
            RequestError: names `field`, and the columns where one is unknown; never the text itself.
        """
        self._node(text, field)

    def match(self, text: str) -> Match:
        """What a checked filter holds for."""
        match = self._matches.get(text)
        if match is None:
            match = self._evaluate(text)
            self._matches.put(text, match, match.mask.nbytes + MATCH_OVERHEAD)
        return match

    def _evaluate(self, text: str) -> Match:
        return Match(self._mask(self._node(text, "filter"), True))

    def _node(self, text: str, field: str) -> Node:
        node = self._parsed.get(text)
        if node is None:
            node = self._parse(text, field)
            self._parsed.put(text, node, PARSED_OVERHEAD + PARSED_CHARACTER * len(text))
        return node

    def _parse(self, text: str, field: str) -> Node:
        try:
            node = expression.parse(text, self._columns.names)
        except ParseError as error:
            unknown = error.what == "no such column"
            remedy = choices(self._columns.names) if unknown else "write e.g. price < 20 and category = 'a'"
            raise RequestError(
                f"{error.what} at position {error.position}", where=field, remedy=remedy
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
        self._check_patterns([leaf for leaf in leaves if isinstance(leaf, Like)], field)
        return node

    def _check(self, leaf: Leaf, field: str) -> None:
        column = self._columns[leaf.column]
        if isinstance(leaf, Like):
            if not isinstance(column, Texts):
                remedy = "compare it with numbers"
                raise RequestError(f"{leaf.column} holds numbers", where=field, remedy=remedy)
        elif isinstance(leaf, expression.Columns):
            if not isinstance(column, Numbers) or not isinstance(self._columns[leaf.other], Numbers):
                raise RequestError("not two columns of numbers", where=field, remedy="compare with a value")
        elif isinstance(leaf, Compare | In):
            values = leaf.values if isinstance(leaf, In) else (leaf.value,)
            if not all(suits(column, value) for value in values):
                remedy = "quote the values" if isinstance(column, Texts) else "compare it with numbers"
                raise RequestError(f"{leaf.column} holds {column.kind}s", where=field, remedy=remedy)

    def _check_patterns(self, patterns: list[Like], field: str) -> None:
        steps = sum(self._texts(pattern).steps_like(pattern) for pattern in patterns)
        if steps > PATTERN_STEPS:
            raise RequestError(
                f"too many texts to compare with patterns ({steps:,} steps of at most {PATTERN_STEPS:,})",
                where=field,
                remedy="let each pattern start with letters, or use fewer % and fewer patterns",
            )

    def _texts(self, leaf: Like) -> Texts:
        column = self._columns[leaf.column]
        assert isinstance(column, Texts)  # as `_check` has seen
        return column

    def _mask(self, node: Node, value: bool) -> Array:
        """(items,) where a condition is known to be `value`; items without the column are in neither."""
        if isinstance(node, Not):
            return self._mask(node.inner, not value)
        if isinstance(node, Join):
            join = np.logical_and if (node.word == "and") == value else np.logical_or
            mask = self._mask(node.parts[0], value)
            for part in node.parts[1:]:
                join(mask, self._mask(part, value), out=mask)
            return mask
        if isinstance(node, expression.Columns):
            return self._two(node, value)
        column = self._columns[node.column]
        if isinstance(node, Null):
            return self._filled(column.rows, [(0, len(column.rows))], not value)
        spans = self._spans(node)
        return self._filled(column.rows, spans if value else opposite(spans, len(column.rows)), True)

    def _filled(self, rows: Array, spans: Spans, value: bool) -> Array:
        mask = np.full(self._columns.items, not value)
        for start, stop in spans:
            mask[rows[start:stop]] = value
        mask[0] = False
        return mask

    def _spans(self, leaf: Compare | In | Like) -> Spans:
        column: Any = self._columns[leaf.column]
        if isinstance(leaf, Like):
            return self._texts(leaf).spans_like(leaf)
        if isinstance(leaf, In):
            return merged([span for value in leaf.values for span in column.spans("=", value)])
        spans: Spans = column.spans(leaf.sign, leaf.value)
        return spans

    def _two(self, leaf: expression.Columns, value: bool) -> Array:
        left, right = (self._columns[name].by_row(self._columns.items) for name in (leaf.column, leaf.other))  # type: ignore[union-attr]
        known = ~(np.isnan(left) | np.isnan(right))
        mask: Array = known & (_TWO[leaf.sign](left, right) == value)
        return mask


def _leaves(node: Node) -> list[Leaf]:
    if isinstance(node, Not):
        return _leaves(node.inner)
    if isinstance(node, Join):
        return [leaf for part in node.parts for leaf in _leaves(part)]
    return [node]
