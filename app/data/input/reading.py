"""Reads a split piece by piece: every piece is a frame of columns as the recipe calls them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from app.data.input import csv_text
from app.data.input.blocks import blocks
from app.data.input.csv_text import Bad, Torn
from app.data.input.form.encoding import wrong_encoding
from app.data.input.source import GROUP_ROWS, Source, Split
from app.data.input.text.json_lines import frame_of, parse_lines
from app.data.input.text.nested import flatten
from app.data.input.text.piece import Piece, numbered
from app.data.input.unfold import unfold
from app.data.values.text import frame_of_arrow
from app.errors import DataError

__all__ = ["Piece", "Torn", "pieces"]


def pieces(split: Split) -> Iterator[Piece]:
    """Read a split in pieces of bounded size.

    Raises:
        DataError: damaged, truncated or in another encoding; names file and line.
        Torn: a byte range of a CSV file may start or end within quotes.
    """
    source, row, line = split.source, 0, 0
    try:
        for frame, bad in _frames(split):
            piece = numbered(_split_sequences(frame, source), line, [(line + r, text) for r, text in bad])
            if source.form.layout != "events":
                piece = unfold(piece, source.form, source.event_column, row)
            yield _named(piece, source)
            row, line = row + piece.count, line + piece.lines
    except UnicodeDecodeError:
        raise _wrong_encoding(source) from None
    except (pa.ArrowException, OSError, EOFError) as error:
        if "invalid UTF8" in str(error) or "invalid UTF-8" in str(error):
            raise _wrong_encoding(source) from None
        raise _damaged(source, error) from None


def _frames(split: Split) -> Iterator[tuple[pl.DataFrame, Bad]]:
    """Frames of the columns of the file, each with the unreadable rows by position and text."""
    form = split.source.form
    if form.format == "parquet":
        yield from _parquet(split)
    elif form.format != "csv":
        for block in blocks(split):
            rows, bad = parse_lines(block)
            yield frame_of(rows, form.columns), bad
    elif form.ragged:
        yield from csv_text.ragged(blocks(split), form)
    else:
        yield from csv_text.frames(blocks(split), form, whole=split.whole)


def _parquet(split: Split) -> Iterator[tuple[pl.DataFrame, Bad]]:
    with split.source.open() as file:
        groups = list(range(split.start, split.end))
        for batch in pq.ParquetFile(file).iter_batches(GROUP_ROWS, row_groups=groups, use_threads=False):
            yield flatten(frame_of_arrow(batch)), []


def _split_sequences(frame: pl.DataFrame, source: Source) -> pl.DataFrame:
    lists = [pl.col(column).str.split(" ") for column in source.form.sequences if column in frame.columns]
    return frame.with_columns(lists) if lists else frame


def _named(piece: Piece, source: Source) -> Piece:
    """The piece with the recipe's names, and the columns that the file does not have."""
    frame = piece.frame
    added: list[pl.Expr | pl.Series] = []
    if source.event and source.event_column:
        added.append(pl.lit(source.event).alias(source.event_column))
    if source.row_users:
        numbers = pl.Series(piece.origins + 1).cast(pl.String)
        added.append((f"{source.label}:" + numbers).alias(source.row_users))
    if not (source.renamed or added):
        return piece
    return replace(piece, frame=frame.rename(source.names(frame.columns)).with_columns(added))


def _wrong_encoding(source: Source) -> DataError:
    return wrong_encoding(source.name, source.form.gzip, source.form.encoding)


def _damaged(source: Source, error: Exception) -> DataError:
    text = str(error).splitlines()[0][:200]
    if source.form.gzip and isinstance(error, OSError | EOFError):
        return DataError(f"damaged or truncated gzip ({text})", where=source.name, remedy="copy it again")
    return DataError(f"cannot be read ({text})", where=source.name, remedy="mend or copy the file again")
