"""A JSON array as JSON lines: its elements, one a line, in blocks of bounded size."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

from app.errors import DataError

_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_QUOTE, _COMMA, _NEWLINE, _SPACE = 34, 44, 10, 32


def elements(parts: Iterable[bytes], name: str, *, head: bool = False) -> Iterator[bytes]:
    """Blocks of the array's elements with a newline behind each; other newlines become blanks.

    Commas of the outermost array, which are those outside of all strings and at depth one, become
    newlines: an element that is not valid JSON is left to the reader of lines.

    Args:
        parts: of the text, some megabytes each at most.
        name: of the file.
        head: whether only the beginning of the array is given.

    Raises:
        DataError: the array is never closed, or something follows it.
    """
    depth, in_string, rest = 0, False, b""
    for part in parts:
        block, rest = _without_torn_escape(rest + part)
        buffer = np.frombuffer(block, np.uint8).copy()
        scanned = np.frombuffer(_ESCAPE.sub(b"__", block), np.uint8) if b"\\" in block else buffer
        quotes = np.cumsum(scanned == _QUOTE, dtype=np.int32) + in_string
        outside = quotes % 2 == 0
        opened = ((scanned == ord("{")) | (scanned == ord("["))) & outside
        closed = ((scanned == ord("}")) | (scanned == ord("]"))) & outside
        depths = depth + np.cumsum(opened.astype(np.int32) - closed.astype(np.int32), dtype=np.int32)
        separator = (scanned == _COMMA) & outside & (depths == 1)
        bracket = (opened & (depths == 1)) | (closed & (depths == 0))
        after = (depths <= 0) & ~bracket & ~np.isin(scanned, [9, 10, 13, _SPACE])
        if after.any():
            raise DataError("something follows the JSON array", where=name, remedy="keep one array a file")
        buffer[buffer == _NEWLINE] = _SPACE
        buffer[bracket | separator] = _NEWLINE
        if len(depths):
            depth, in_string = int(depths[-1]), bool(quotes[-1] % 2)
        yield buffer.tobytes()
    if not head and (depth or in_string or rest):
        raise DataError("the JSON array is truncated: it is never closed", where=name, remedy="copy it again")


def _without_torn_escape(block: bytes) -> tuple[bytes, bytes]:
    """A block without a backslash at its end that escapes what comes next, and that backslash."""
    slashes = len(block) - len(block.rstrip(b"\\"))
    return (block[:-1], block[-1:]) if slashes % 2 else (block, b"")
