"""Files of the same form as one table, with a sample of its rows from all over it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath

import polars as pl

from app.data.input.form.files import find
from app.data.input.form.form import Form, find_form
from app.data.input.reading import Torn, pieces
from app.data.input.source import Source, cut, describe
from app.data.values.text import text_of
from app.recipe import Data
from app.terminal.guess.facts import Column

ROWS, BLOCKS = 100_000, 10  # rows of a sample, and blocks of neighbours that they come in, of each piece
FILES, SPLITS, PIECES = 10, 8, 16  # of a table, of a file, of a split that are looked at


@dataclass(frozen=True)
class Table:
    """Files that are read in the same way and have the same columns.

    Attributes:
        files: their paths or URIs.
        form: how they are read.
        columns: facts of each column by its name in the recipe.
    """

    files: list[str]
    form: Form
    columns: dict[str, Column] = field(repr=False)

    @property
    def rows(self) -> int:
        """Rows of the sample."""
        return max((len(column.values) for column in self.columns.values()), default=0)

    @property
    def named(self) -> bool:
        """Whether the files name their columns."""
        return self.form.header or self.form.format != "csv"

    @cached_property
    def by_row(self) -> dict[str, Column]:
        """The columns that a row of the files has once, where it becomes several events; else all."""
        if self.form.layout == "events":
            return self.columns
        unfolded = (self.form.items, *self.form.parallel)
        once = [name for name in self.frame.columns if name in self.form.columns and name not in unfolded]
        rows = self.frame.select(once).unique(maintain_order=True)
        return {name: Column(name, rows[name]) for name in once}

    @cached_property
    def frame(self) -> pl.DataFrame:
        """The sample, text columns with null where missing."""
        return pl.DataFrame([column.values.alias(name) for name, column in self.columns.items()])


def find_tables(entries: Sequence[str]) -> list[Table]:
    """The tables that files, folders and globs hold, in the order of their first file.

    Raises:
        DataError: there is no such file, or one cannot be read.
    """
    groups: dict[tuple[object, ...], list[tuple[str, Form]]] = {}
    for name in dict.fromkeys(find(entries, key="--from")):
        form = find_form(name, Data())
        # Without names the columns say less than the file's name of what it holds.
        stem = "" if form.header or form.format != "csv" else _letters(name)
        key = (
            form.format,
            form.gzip,
            form.delimiter,
            form.encoding,
            form.quote,
            form.columns,
            form.layout,
            stem,
        )
        groups.setdefault(key, []).append((name, form))
    return [_table([name for name, _ in group], group[0][1]) for group in groups.values()]


def _letters(name: str) -> str:
    return "".join(letter for letter in PurePosixPath(name).name if letter.isalpha())


def _table(files: list[str], form: Form) -> Table:
    chosen = files[:: -(-len(files) // FILES)]
    frames = [frame for name in chosen for frame in _sample(name, form, ROWS // len(chosen))]
    frame = pl.concat(frames, how="diagonal") if frames else form.sample
    return Table(files, form, {c: Column.of(frame[c], listed=c in form.sequences) for c in frame.columns})


def _sample(name: str, form: Form, rows: int) -> Iterator[pl.DataFrame]:
    source = _source(name, form)
    splits = cut(source, 0)
    for split in splits[:: -(-len(splits) // SPLITS)]:
        share = max(BLOCKS, rows // min(len(splits), SPLITS))
        try:
            for number, piece in enumerate(pieces(split)):
                yield _blocks(piece.frame, share // (1 + number))
                if number == PIECES:
                    break
        except Torn:
            continue  # the others show enough


def _source(name: str, form: Form) -> Source:
    hints = Data(
        format=form.format, layout=form.layout, encoding=form.encoding, quote=form.quote,
        delimiter="" if form.format != "csv" else form.delimiter, item=form.items or "item",
        columns=[] if form.header or form.format != "csv" else list(form.columns),
    )  # fmt: skip
    return describe(name, hints)


def _blocks(frame: pl.DataFrame, rows: int) -> pl.DataFrame:
    """Rows as text, in blocks of neighbours from all over the frame."""
    if len(frame) > rows:
        step, length = len(frame) // BLOCKS, max(1, rows // BLOCKS)
        frame = pl.concat([frame.slice(block * step, length) for block in range(BLOCKS)])
    return pl.DataFrame([_text(series) for series in frame])


def _text(series: pl.Series) -> pl.Series:
    if isinstance(series.dtype, pl.List):
        return series.cast(pl.List(pl.String)).list.join(" ")
    return text_of(series)
