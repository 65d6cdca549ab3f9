"""The users of an offline run, and the candidates of each where the file has any.

Text files have a user a line. CSV, JSON lines and Parquet have a column `user` and may have a
column `items`: a list, or text with commas or spaces between. All but Parquet may be compressed
with gzip; a folder stands for its files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from app.bundle.request.json_lines import Lines
from app.data.input.form.files import filesystem, suffix_format
from app.data.input.reading import pieces
from app.data.input.source import Source, Split, describe
from app.data.values.text import lists_of, normal_ids, text_of
from app.errors import DataError
from app.recipe import Data

USER, ITEMS = "user", "items"
_LINE_BYTES, _READ_BYTES, _BATCH_ROWS = 1 << 20, 1 << 18, 4096


class Row(NamedTuple):
    """A user to rank for. `items` are the candidates, None for all; `fault` says why the row is unusable."""

    user: str
    items: list[str] | None = None
    fault: str = ""


class _Line(msgspec.Struct):
    user: str | int
    items: list[str | int] | None = None


def read_users(names: Sequence[str]) -> Iterator[Row]:
    """The rows of files, in their order, in bounded memory.

    Raises:
        DataError: a file is damaged, has no column `user`, or is not what its ending says.
    """
    for name in names:
        yield from _read(name)


def _read(name: str) -> Iterator[Row]:
    if name.lower().endswith((".txt", ".txt.gz")):
        yield from _text(name)
        return
    source = describe(name, Data())
    if USER not in source.columns:
        raise DataError(
            f"no column {USER!r}; there are {', '.join(source.columns)}",
            where=name,
            remedy=f"name the column of user ids {USER!r}",
        )
    reader = {"csv": _csv, "json": _csv, "jsonl": _jsonl, "parquet": _parquet}[source.form.format]
    yield from reader(source)


def _text(name: str) -> Iterator[Row]:
    for number, line in _lines(name):
        try:
            user = line.decode().strip() if line is not None else ""
        except UnicodeDecodeError:
            user = ""
        yield Row(user) if user else _broken(name, number, "not a line of UTF-8 text")


def _jsonl(source: Source) -> Iterator[Row]:
    decoder = msgspec.json.Decoder(_Line)
    for number, line in _lines(source.name):
        try:
            row = decoder.decode(line or b"")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            yield _broken(source.name, number, str(error))
        else:
            yield Row(str(row.user), None if row.items is None else list(map(str, row.items)))


def _csv(source: Source) -> Iterator[Row]:
    whole = Split(0, source, 0, source.size, True, 0)
    for piece in pieces(whole):
        for row, _ in piece.bad:
            yield _broken(
                source.name, row + 1 + source.form.lines, "another number of fields than the header"
            )
        if piece.frame.height:
            yield from _rows(piece.frame, source.name)


def _parquet(source: Source) -> Iterator[Row]:
    columns = [name for name in (USER, ITEMS) if name in source.columns]
    with source.open() as file:
        try:
            for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
                yield from _rows(pl.DataFrame(pl.from_arrow(batch)), source.name)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"damaged Parquet ({error})", where=source.name, remedy="copy it again") from None


def _rows(frame: pl.DataFrame, name: str) -> Iterator[Row]:
    users = normal_ids(text_of(frame[USER])).to_list()
    lists = lists_of(frame[ITEMS]).to_list() if ITEMS in frame.columns else [None] * len(users)
    for user, items in zip(users, lists, strict=True):
        yield _broken(name, 0, "a row without a user") if user is None else Row(user, items)


def _lines(name: str) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines of a file, a longer one than is allowed as None."""
    system, path = filesystem(name)
    lines, gzip = Lines(_LINE_BYTES), suffix_format(name)[1]
    try:
        with system.open_input_stream(path, compression="gzip" if gzip else None) as stream:
            while piece := stream.read(_READ_BYTES):
                yield from lines.feed(piece)
        yield from lines.end()
    except OSError as error:
        raise DataError(f"cannot be read ({error})", where=name, remedy="copy it again") from None


def _broken(name: str, number: int, why: str) -> Row:
    return Row("", None, f"{name}, line {number}: {why}" if number else f"{name}: {why}")
