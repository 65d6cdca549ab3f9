"""Blocks of CSV as frames of text: any delimiter, quotes that are letters, rows with surplus fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv

from app.data.input.form.form import Form
from app.data.input.text.fields import fields_of
from app.data.input.text.quotes import QUOTE, judge, mend
from app.errors import DataError

_CONTROLS = [bytes([code]) for code in (31, 30, 29, 28, 1, 2, 3, 4, 5, 6)]
Bad = list[tuple[int, str]]


class Torn(Exception):
    """A byte range may start or end within quotes: the file has to be read whole."""


def frames(blocks: Iterator[bytes], form: Form, *, whole: bool) -> Iterator[tuple[pl.DataFrame, Bad]]:
    """For each block its readable rows, and position in the block and text of the others.

    Args:
        blocks: UTF-8 lines; a quoted field may go on in the next block.
        form: how they are cut.
        whole: whether the blocks are a whole file.

    Raises:
        Torn: not whole, and the quotes of a block do not fit together.
    """
    rest = b""
    for block in blocks:
        raw, mark = _single_delimiter(rest + block, form)
        raw, rest, doubtful = _mended(raw, mark, form, final=not whole)
        frame, bad = _parse(raw, mark, form)
        if doubtful and bad and not whole:
            raise Torn
        rest = (
            rest.replace(mark, form.delimiter.encode()) if rest and mark != form.delimiter.encode() else rest
        )
        yield frame, bad
    if rest:
        raw, mark = _single_delimiter(rest, form)
        yield _parse(_mended(raw, mark, form, final=True)[0], mark, form)


def _single_delimiter(raw: bytes, form: Form) -> tuple[bytes, bytes]:
    """Lines whose delimiter is one byte, and that byte: a control character in the place of several."""
    mark = form.delimiter.encode()
    if len(mark) == 1:
        return raw, mark
    control = next((c for c in _CONTROLS if c not in raw), None)
    if control is None:
        raise DataError(
            "holds control characters", where=form.delimiter, remedy="use a delimiter of one byte"
        )
    return raw.replace(mark, control), control


def _mended(raw: bytes, mark: bytes, form: Form, *, final: bool) -> tuple[bytes, bytes, bool]:
    """Lines in which every quote encloses a field, those that may go on, and whether there was a doubt."""
    if not form.quote or QUOTE not in raw:
        return raw, b"", False
    quotes = judge(raw, mark)
    if quotes == "closed":
        return raw, b"", False
    return *mend(raw, mark, form.width, final=final), quotes == "open"


def _parse(raw: bytes, mark: bytes, form: Form) -> tuple[pl.DataFrame, Bad]:
    names = list(form.columns)
    surplus = [f"\0{i}" for i in range(form.width - len(names))]
    skipped: list[tuple[int, str]] = []

    def set_aside(row: Any) -> str:
        skipped.append((row.number - 1, row.text))
        return "skip"

    quoted = bool(form.quote) and QUOTE in raw
    try:
        reader = pacsv.open_csv(
            pa.BufferReader(raw),
            pacsv.ReadOptions(
                column_names=names + surplus, block_size=max(len(raw), 1), use_threads=False
            ),
            pacsv.ParseOptions(
                delimiter=mark.decode(), quote_char='"' if quoted else False, newlines_in_values=quoted,
                invalid_row_handler=set_aside,
            ),
            # All text: a column has the same type in every split, and ids keep their zeros.
            pacsv.ConvertOptions(
                column_types=dict.fromkeys(names + surplus, pa.string()), strings_can_be_null=True,
                null_values=[""],
            ),
        )  # fmt: skip
        frame = pl.DataFrame(pl.from_arrow(reader.read_all()))
    except pa.ArrowInvalid as error:
        if "Empty CSV" not in str(error):
            raise
        frame = pl.DataFrame(schema=dict.fromkeys(names + surplus, pl.String))
    return _with_ragged(frame, skipped, mark, form) if skipped or surplus else (frame, [])


def _with_ragged(frame: pl.DataFrame, skipped: Bad, mark: bytes, form: Form) -> tuple[pl.DataFrame, Bad]:
    """Take in the rows whose surplus fields are empty; the others are bad."""
    names, delimiter = list(form.columns), mark.decode()
    rows = np.delete(np.arange(len(frame) + len(skipped)), [row for row, _ in skipped])
    cut_off = frame.select(names)
    bad: Bad = []
    if frame.width > len(names):
        full = pl.Series(
            frame.select(pl.any_horizontal(pl.col(frame.columns[len(names) :]).is_not_null())).to_series()
        )
        bad = [
            (int(rows[i]), form.delimiter.join(value or "" for value in frame.row(i)))
            for i in full.arg_true().to_list()
        ]
        cut_off, rows = cut_off.filter(~full), rows[~full.to_numpy()]
    good: list[tuple[int, list[str | None]]] = []
    for row, text in skipped:
        fields: list[str] = next(fields_of([text], delimiter, form.quote), [])
        if len(fields) >= len(names) and not any(fields[len(names) :]):
            good.append((row, [value or None for value in fields[: len(names)]]))
        else:
            bad.append((row, text.replace(delimiter, form.delimiter)))
    if good:
        added = pl.DataFrame(
            [fields for _, fields in good], schema=dict.fromkeys(names, pl.String), orient="row"
        )
        order = np.argsort(np.concatenate([rows, [row for row, _ in good]]), kind="stable")
        cut_off = pl.concat([cut_off, added])[order]
    return cut_off, sorted(bad)


def ragged(blocks: Iterator[bytes], form: Form) -> Iterator[tuple[pl.DataFrame, Bad]]:
    """For each block a row a line: the last column is what follows the fields of the others."""
    line = Form("csv", delimiter=next(c.decode() for c in _CONTROLS), quote="", columns=("line",), width=1)
    last = len(form.columns)
    for block in blocks:
        lines = _parse(block, line.delimiter.encode(), line)[0]["line"].str.strip_chars()
        if form.delimiter == " ":
            lines = lines.str.replace_all(r"\s+", " ")
        parts = lines.str.splitn(form.delimiter, last).struct.unnest()
        parts.columns = list(form.columns)
        yield parts, []
