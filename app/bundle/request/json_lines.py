"""Requests as JSON lines: a line with `items` ranks them, one without recommends."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from app.bundle.request.decoding import decoder
from app.bundle.request.requests import RankRequest, RecommendRequest


class _Kind(msgspec.Struct):
    items: msgspec.Raw | UnsetType = UNSET


_kind = msgspec.json.Decoder(_Kind)
_rank, _recommend = decoder(RankRequest), decoder(RecommendRequest)


def read_line(line: bytes) -> RankRequest | RecommendRequest:
    """The request of a line.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: it is none.
    """
    # The text may also stand in an id, so only the parser knows.
    if b'"items"' in line and _kind.decode(line).items is not UNSET:
        return _rank(line)
    return _recommend(line)


class Lines:
    """Cuts bytes that come in pieces into lines, and never holds more than one that is not whole.

    `number` counts lines so far, empty ones too.

    Args:
        limit: longest line in bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.number = limit, 0
        self._parts: list[bytes] = []
        self._length = 0

    def feed(self, piece: bytes) -> list[tuple[int, bytes | None]]:
        """Number and text of the lines that this piece ends; None stands for a line that is too long."""
        *whole, rest = piece.split(b"\n")
        lines = []
        for text in whole:
            self._keep(text)
            lines += self._line()
        self._keep(rest)
        return lines

    def end(self) -> list[tuple[int, bytes | None]]:
        """The last line, where no newline ended it."""
        return self._line() if self._length else []

    def _keep(self, text: bytes) -> None:
        self._length += len(text)
        if self._length > self.limit:
            self._parts.clear()
        elif text:
            self._parts.append(text)

    def _line(self) -> list[tuple[int, bytes | None]]:
        text = None if self._length > self.limit else b"".join(self._parts)
        self._parts, self._length = [], 0
        self.number += 1
        return [] if text is not None and not text.strip() else [(self.number, text)]
