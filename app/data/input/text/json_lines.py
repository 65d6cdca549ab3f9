"""JSON lines: each line is an object; lines that are not are set aside with their text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import polars as pl

from app.data.input.text.nested import Row, top_level, value_at

_LARGEST = 1 << 63
_decoder = msgspec.json.Decoder(dict[str, Any])


def parse_lines(raw: bytes) -> tuple[list[Row], list[tuple[int, str]]]:
    """Objects of the lines, and (position among all non-empty lines, text) of the unreadable.

    Raises:
        UnicodeDecodeError: the bytes are not UTF-8.
    """
    try:
        return _decoder.decode_lines(raw), []
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    rows: list[Row] = []
    bad: list[tuple[int, str]] = []
    lines = [line for line in raw.split(b"\n") if line.strip()]
    for position, line in enumerate(lines):
        row = _parse(line)
        if row is None:
            bad.append((position, line.decode()))
        else:
            rows.append(row)
    return rows, bad


def _parse(line: bytes) -> Row | None:
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        line.decode()
    try:  # the standard library takes NaN and Infinity, which pandas and others write
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()  # a lone surrogate is no text
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def frame_of(rows: list[Row], columns: Sequence[str]) -> pl.DataFrame:
    """A column for each of `columns`, some of them paths, and every other key; null where absent.

    Columns are text, but those of booleans alone and those with lists, which keep that type.
    """
    names, known = dict.fromkeys(columns), top_level(columns)
    for row in rows:
        names.update(dict.fromkeys(key for key in row if key not in known))
    return pl.DataFrame({name: _series(name, [value_at(row, name) for row in rows]) for name in names})


def _series(name: str, values: list[Any]) -> pl.Series:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pl.Series(name, values, pl.Boolean)
    if list in kinds:
        lists = [value if value is None or isinstance(value, list) else [value] for value in values]
        texts = [value and [text_of_json(part) for part in value] for value in lists]
        return pl.Series(name, texts, pl.List(pl.String))
    return pl.Series(name, [text_of_json(value) for value in values], pl.String)


def text_of_json(value: Any) -> str | None:
    """A value of JSON as text; what is nested stays JSON, a whole float is written as an integer."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST:
        return str(int(value))
    return json.dumps(value, ensure_ascii=False)
