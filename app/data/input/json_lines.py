"""JSON lines: each line is an object; lines that are not are set aside with their text."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import polars as pl

Row = dict[str, Any]
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


def frame_of(rows: list[Row], columns: tuple[str, ...]) -> pl.DataFrame:
    """A text column for each of `columns` and every other key; null where absent."""
    names = dict.fromkeys(columns)
    for row in rows:
        names.update(dict.fromkeys(row))
    texts = {n: pl.Series(n, [_text(row.get(n)) for row in rows], pl.String) for n in names}
    return pl.DataFrame(texts)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
