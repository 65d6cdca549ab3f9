"""`rayrec rank`: answers from a bundle, without a server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import msgspec

from app.bundle.request.json_lines import read_line
from app.bundle.request.requests import Answer, RankRequest, RecommendRequest
from app.bundle.runtime import Ranker
from app.errors import RequestError

BATCH = 64


def rank_one(bundle: Path, user: str, items: list[str], k: int) -> dict[str, Any]:
    """The best k of `items` for a user, or of all items where there are none."""
    ranker = Ranker.open(bundle)
    if items:
        (answer,) = ranker.rank([RankRequest(user=user, items=items, k=k)])
    else:
        (answer,) = ranker.recommend([RecommendRequest(user=user, k=k)])
    plain: dict[str, Any] = msgspec.to_builtins(answer)
    return plain


def rank_lines(bundle: Path, source: Path, out: TextIO) -> None:
    """Answer JSON lines of requests; one with `items` ranks them, one without recommends.

    Raises:
        RequestError: names the first line that cannot be answered; those before are written.
    """
    ranker = Ranker.open(bundle)
    encoder = msgspec.json.Encoder()
    for answer in _answers(ranker, source):
        out.write(encoder.encode(answer).decode() + "\n")


def _answers(ranker: Ranker, source: Path) -> Iterator[Answer]:
    batch: list[RankRequest] = []
    for number, line in enumerate(_lines(source), 1):
        request = _parse(line, f"{source}, line {number}")
        if isinstance(request, RecommendRequest):
            yield from ranker.rank(batch) if batch else ()
            batch = []
            yield from ranker.recommend([request])
        else:
            batch.append(request)
            if len(batch) == BATCH:
                yield from ranker.rank(batch)
                batch = []
    if batch:
        yield from ranker.rank(batch)


def _parse(line: bytes, where: str) -> RankRequest | RecommendRequest:
    try:
        return read_line(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RequestError(
            f"not a request: {error}", where=where, remedy="see /docs for the fields"
        ) from None


def _lines(source: Path) -> Iterator[bytes]:
    if str(source) == "-":
        yield from (line for line in sys.stdin.buffer if line.strip())
        return
    try:
        with source.open("rb") as stream:
            yield from (line for line in stream if line.strip())
    except OSError as error:
        raise RequestError(
            f"cannot read ({error.strerror})", where=str(source), remedy="name a file"
        ) from None
