"""Reads a split piece by piece: every piece is a frame of its original columns."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from app.data.input.files import GROUP_ROWS, SPLIT_BYTES, Source, Split
from app.data.input.format import delimiter
from app.data.input.json_lines import frame_of, parse_lines
from app.errors import DataError
from app.recipe import Data

_UTF8 = ("utf-8", "utf8", "utf-8-sig", "utf_8")
_READ = 1 << 20


class Torn(Exception):
    """A byte range may start or end within quotes: the file has to be read whole."""


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a split, as they were read.

    Attributes:
        frame: the readable rows, original columns.
        rows: (N,) position of each in the split, from 0; unreadable rows are counted.
        bad: position and text of the unreadable rows.
    """

    frame: pl.DataFrame
    rows: npt.NDArray[np.int64]
    bad: list[tuple[int, str]]

    @property
    def count(self) -> int:
        """Rows read, unreadable ones included."""
        return len(self.rows) + len(self.bad)


def pieces(split: Split, data: Data) -> Iterator[Piece]:
    """Read a split in pieces of bounded size.

    Raises:
        DataError: damaged, truncated or in another encoding; names file and line.
        Torn: a byte range of a CSV file has an odd number of quotes.
    """
    reader = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}[split.source.format]
    try:
        yield from reader(split, data)
    except UnicodeDecodeError:
        raise _wrong_encoding(split.source, data) from None
    except (pa.ArrowException, OSError, EOFError) as error:
        if "invalid UTF8" in str(error) or "invalid UTF-8" in str(error):
            raise _wrong_encoding(split.source, data) from None
        raise _damaged(split.source, error) from None


def _damaged(source: Source, error: Exception) -> DataError:
    text = str(error).splitlines()[0][:200]
    if source.gzip and isinstance(error, OSError | EOFError):
        return DataError(f"damaged or truncated gzip ({text})", where=source.name, remedy="copy it again")
    if "straddling" in text or "out of sync" in text:
        return _never_closed(source)
    return DataError(f"cannot be read ({text})", where=source.name, remedy="mend or copy the file again")


def _never_closed(source: Source, row: str = "") -> DataError:
    remedy = "close the quotes, or double a quote that belongs to the text"
    return DataError("a quoted field is never closed", where=f"{source.name}{row}", remedy=remedy)


def _csv(split: Split, data: Data) -> Iterator[Piece]:
    source = split.source
    bad: deque[tuple[int, str]] = deque()
    open_rows: list[int] = []  # rows that a quote, never closed, made run on

    def set_aside(row: Any) -> str:
        if row.text.count('"') % 2 and "\n" in row.text:
            open_rows.append(row.number - split.source.header * split.whole)
        bad.append((row.number - 1, row.text))
        return "skip"

    with source.open() as file:
        if split.whole:
            stream: Any = pa.CompressedInputStream(file, "gzip") if source.gzip else file
            quoted, size, skip = True, SPLIT_BYTES, source.header
        else:
            raw = _range(file, split)
            stream, size, skip = pa.BufferReader(raw), max(len(raw), 1), 0
            quotes = raw.count(b'"')
            quoted = quotes > 0
            if quotes % 2:
                raise Torn
        if stream is file and split.start >= file.size():
            return
        yield from _batches(_open_csv(stream, source, data, (size, skip, quoted), set_aside), bad, skip)
        if open_rows:
            raise _never_closed(source, f", row {open_rows[0]}")


def _open_csv(
    stream: Any, source: Source, data: Data, shape: tuple[int, int, bool], set_aside: Callable[[Any], str]
) -> Any:
    size, skip, quoted = shape
    names = list(source.columns)
    try:
        return pacsv.open_csv(
            stream,
            pacsv.ReadOptions(
                column_names=names, block_size=size, skip_rows=skip, use_threads=False, encoding=data.encoding
            ),
            pacsv.ParseOptions(
                delimiter=delimiter(source.name, data),
                newlines_in_values=quoted,
                invalid_row_handler=set_aside,
            ),
            # All text: a column has the same type in every split, and ids keep their zeros.
            pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
            ),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            return iter(())
        raise


def _batches(reader: Any, bad: deque[tuple[int, str]], skip: int) -> Iterator[Piece]:
    done = 0
    for batch in reader:
        # The reader is ahead of us: rows set aside may belong to batches that are to come.
        here: list[tuple[int, str]] = []
        while bad and bad[0][0] - skip <= done + batch.num_rows + len(here):
            row, text = bad.popleft()
            here.append((row - skip, text))
        yield _number(pl.DataFrame(pl.from_arrow(batch)), done, here)
        done += batch.num_rows + len(here)
    if bad:
        rows = [(row - skip, text) for row, text in bad]
        yield Piece(pl.DataFrame(), np.empty(0, np.int64), rows)


def _number(frame: pl.DataFrame, first: int, bad: list[tuple[int, str]]) -> Piece:
    """Positions of the readable rows: all but the unreadable ones."""
    rows = np.arange(first, first + len(frame) + len(bad))
    return Piece(frame, np.delete(rows, [row - first for row, _ in bad]) if bad else rows, bad)


def _range(file: pa.NativeFile, split: Split) -> bytes:
    return bytes(file.read_at(split.end - split.start, split.start))


def _jsonl(split: Split, data: Data) -> Iterator[Piece]:
    done = 0
    with split.source.open() as file:
        for raw in _line_blocks(file, split):
            text = raw if data.encoding.lower() in _UTF8 else raw.decode(data.encoding).encode()
            rows, bad = parse_lines(text.removeprefix(codecs.BOM_UTF8) if done == 0 else text)
            yield _number(frame_of(rows, split.source.columns), done, [(done + r, t) for r, t in bad])
            done += len(rows) + len(bad)


def _line_blocks(file: pa.NativeFile, split: Split) -> Iterator[bytes]:
    if not split.source.gzip:
        yield _range(file, split)
        return
    stream, rest = pa.CompressedInputStream(file, "gzip"), b""
    while block := stream.read(SPLIT_BYTES):
        head, newline, tail = (rest + block).rpartition(b"\n")
        if newline:
            yield head
        rest = tail
    if rest.strip():
        yield rest


def _parquet(split: Split, data: Data) -> Iterator[Piece]:
    done = 0
    with split.source.open() as file:
        groups = list(range(split.start, split.end))
        for batch in pq.ParquetFile(file).iter_batches(GROUP_ROWS, row_groups=groups, use_threads=False):
            yield _number(pl.DataFrame(pl.from_arrow(batch)), done, [])
            done += batch.num_rows


def _wrong_encoding(source: Source, data: Data) -> DataError:
    """Find the first byte that does not decode, and the line that it is on."""
    decoder = codecs.getincrementaldecoder(data.encoding)()
    line, offset, undecoded = 1, 0, b""
    with source.open() as file:
        stream = pa.CompressedInputStream(file, "gzip") if source.gzip else file
        while block := stream.read(_READ):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                start = error.start - len(undecoded)
                line += block[: max(start, 0)].count(b"\n")
                value = error.object[error.start]
                return DataError(
                    f"byte 0x{value:02x} at offset {offset + start} is not {data.encoding}",
                    where=f"{source.name}, line {line}",
                    remedy='set data.encoding, e.g. "latin-1" or "cp1252"',
                )
            undecoded = decoder.getstate()[0]
            line, offset = line + block.count(b"\n"), offset + len(block)
    return DataError(f"does not decode as {data.encoding}", where=source.name, remedy="set data.encoding")
