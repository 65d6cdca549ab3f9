"""Nested columns by the dotted paths of their leaves: "user.id" of {"user": {"id": 7}}.

A list of objects is a column of lists for each of their keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

Row = dict[str, Any]
_MOST_KEYS = 64  # an object with more of them is a mapping, whose keys are no columns


def flatten(frame: pl.DataFrame) -> pl.DataFrame:
    """A frame whose structs, and lists of structs, are columns of their own."""
    while any(_fields(kind) for kind in frame.dtypes):
        frame = frame.select(leaf for name, kind in frame.schema.items() for leaf in _leaves(name, kind))
    return frame


def _fields(kind: pl.DataType) -> list[str]:
    inner = kind.inner if isinstance(kind, pl.List) else kind
    return [field.name for field in inner.fields] if isinstance(inner, pl.Struct) else []


def _leaves(name: str, kind: pl.DataType) -> list[pl.Expr]:
    column, fields = pl.col(name), _fields(kind)
    if not fields:
        return [column]
    if isinstance(kind, pl.List):
        return [column.list.eval(pl.element().struct.field(f)).alias(f"{name}.{f}") for f in fields]
    return [column.struct.field(f).alias(f"{name}.{f}") for f in fields]


def paths(rows: Iterable[Row]) -> list[str]:
    """Paths of the leaves of rows, in the order in which they first occur."""
    found = dict.fromkeys(path for row in rows for path in _paths(row))
    keys = Counter(path.partition(".")[0] for path in found)
    return list(dict.fromkeys(p if keys[key := p.partition(".")[0]] <= _MOST_KEYS else key for p in found))


def _paths(value: Row) -> Iterable[str]:
    for key, inner in value.items():
        objects = inner if isinstance(inner, list) else [inner]
        nested = [path for o in objects if isinstance(o, dict) for path in _paths(o)]
        yield from (f"{key}.{path}" for path in nested) if nested else [key]


def value_at(row: Row, path: str) -> Any:
    """The value at a path; a list where the path leads through a list, None where nothing is there."""
    if path in row:
        return row[path]
    key, dot, rest = path.partition(".")
    inner = row.get(key) if dot else None
    if isinstance(inner, dict):
        return value_at(inner, rest)
    if isinstance(inner, list):
        return [value_at(element, rest) if isinstance(element, dict) else None for element in inner]
    return None


def top_level(columns: Sequence[str]) -> set[str]:
    """The keys of rows that the columns, some of them paths, come from."""
    return {column.partition(".")[0] for column in columns}
