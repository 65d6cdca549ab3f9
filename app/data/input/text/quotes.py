"""Quotes that enclose fields, and quotes that are letters of a text.

A quote encloses a field where it stands at its beginning and another at its end (RFC 4180; within it
quotes are doubled). What is left are letters, such as the title of a book with a single quote, which must
not swallow the lines up to the next one.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Literal

import numpy as np

QUOTE = b'"'
_UNCLOSED = re.compile(rb'[^"]*(?:""[^"]*)*')
_LONGEST = 1 << 20  # bytes that a field may span beyond the end of a block

Quotes = Literal["closed", "spanning", "open"]


def judge(raw: bytes, delimiter: bytes) -> Quotes:
    """Whether all quotes of a block enclose fields: on a line each, over several lines, or not all do."""
    buffer = np.frombuffer(raw, np.uint8)
    positions = np.flatnonzero(buffer == QUOTE[0])
    if len(positions) % 2:
        return "open"
    ends = np.zeros(256, bool)
    ends[[delimiter[0], ord("\n"), QUOTE[0]]] = True
    if not ends[buffer[np.maximum(positions[::2] - 1, 0)]].all():  # or the first byte, which is a quote
        return "open"
    ends[ord("\r")] = True
    after = positions[1::2] + 1
    if not ends[buffer[after[after < len(buffer)]]].all():
        return "open"
    newlines = np.flatnonzero(buffer == ord("\n"))
    return "spanning" if (np.searchsorted(positions, newlines) % 2).any() else "closed"


def mend(raw: bytes, delimiter: bytes, width: int, *, final: bool = True) -> tuple[bytes, bytes]:
    """A block in which quotes that are letters are written as RFC 4180 has it: enclosed and doubled.

    Args:
        raw: lines; the last one is whole.
        delimiter: one byte.
        width: fields of a row. A quoted field that spans lines which all have as many, with the quotes
            as letters, is none.
        final: whether no further block follows, so that what is open stays so.

    Returns:
        The mended lines, and those from a field on that may be closed in the next block.
    """
    edits, held = _letters(raw, delimiter, width, final)
    parts, done = [], 0
    for start, end in edits:
        if start < held:
            parts += [raw[done:start], QUOTE, raw[start:end].replace(QUOTE, QUOTE * 2), QUOTE]
            done = end
    return b"".join([*parts, raw[done:held]]), raw[held:]


def _letters(raw: bytes, delimiter: bytes, width: int, final: bool) -> tuple[list[tuple[int, int]], int]:
    """Start and end of the fields whose first quote is a letter, and where the lines end that are certain."""
    edits: list[tuple[int, int]] = []
    enclosed, field_end = _patterns(delimiter)
    position = 0
    while field := enclosed.search(raw, position):
        if field["line"] or (field["lines"] and not _is_table(raw, *field.span(), delimiter, width)):
            position = field.end()
            continue
        line = raw.rfind(b"\n", 0, field.start()) + 1
        if not (final or field["lines"]) and _may_close(raw, field.start(), line, delimiter, width):
            return edits, line
        end = field_end.search(raw, field.start())
        position = end.start() if end else len(raw)
        edits.append((field.start(), position))
    return edits, len(raw)


@cache
def _patterns(delimiter: bytes) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """A field that starts with a quote, enclosed on its line or over several or not; and a field's end."""
    mark = re.escape(delimiter)
    end = rb'"(?=[%b\r\n]|\Z)' % mark
    line = rb'(?P<line>[^"\n]*(?:""[^"\n]*)*%b)' % end
    lines = rb'(?P<lines>[^"]*(?:""[^"]*)*%b)' % end
    return re.compile(rb'(?<![^%b\n])"(?:%b|%b)?' % (mark, line, lines)), re.compile(rb"[%b\r\n]|\Z" % mark)


def _is_table(raw: bytes, start: int, end: int, delimiter: bytes, width: int) -> bool:
    """Whether the lines that a field spans are whole rows, if its quotes are letters."""
    first, last = raw.rfind(b"\n", 0, start) + 1, raw.find(b"\n", end)
    lines = raw[first : last if last >= 0 else len(raw)].split(b"\n")
    return all(_row(line, delimiter, width) for line in lines)


def _row(line: bytes, delimiter: bytes, width: int) -> bool:
    return width > 1 and line.count(delimiter) + 1 == width


def _may_close(raw: bytes, start: int, line: int, delimiter: bytes, width: int) -> bool:
    """Whether a field that is open at the end of a block may be closed in the next one."""
    short = len(raw) - line <= _LONGEST and _UNCLOSED.fullmatch(raw, start + 1) is not None
    end = raw.find(b"\n", start)
    return short and not _row(raw[line : end if end >= 0 else len(raw)], delimiter, width)
