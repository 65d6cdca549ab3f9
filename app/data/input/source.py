"""Sources of events or attributes, and how they are cut into splits for several cores.

A split is a byte range of plain CSV or JSON lines that starts and ends at a newline, some
row groups of a Parquet file, or a whole compressed file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import PurePosixPath

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from app.data.input.form.files import filesystem
from app.data.input.form.form import Form, find_form
from app.data.input.text.lists import find_parallel
from app.recipe import AttributeFile, Data, EventSource

SPLIT_BYTES = 32 << 20
GROUP_ROWS = 500_000  # rows of Parquet a split holds, where its row groups allow
ROW_BYTES, GZIP_RATIO = 60, 6  # to guess the rows of a text file


@dataclass(frozen=True)
class Source:
    """An input file, or a feedback log of which there is a copy.

    Attributes:
        name: path or URI, as messages show it.
        size: bytes.
        form: how it is read.
        renamed: (name in the file, name in the recipe) of columns that [data] calls differently.
        event: type of all its events; empty: a column says it.
        event_column: the column of [data] for the type of events.
        row_users: the column of [data] for users, where each row is a user; empty: the file has it.
        label: what the ids of such users begin with.
        test: a file of `split.test_events`.
        own: a file of [[data.sources]], which may lack columns that others have.
        copy: path of the copy that is read in its stead; empty for files.
    """

    name: str
    size: int
    form: Form
    renamed: tuple[tuple[str, str], ...] = ()
    event: str = ""
    event_column: str = ""
    row_users: str = ""
    label: str = ""
    test: bool = False
    own: bool = False
    copy: str = ""

    def names(self, columns: Iterable[str]) -> dict[str, str]:
        """The recipe's name of each column of the file.

        A column of the file whose name is needed for another is called `NAME_`.
        """
        renamed = dict(self.renamed)
        taken = {*renamed.values(), *self._added}
        return {c: renamed.get(c, f"{c}_" if c in taken else c) for c in columns}

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns as the recipe calls them."""
        return (*self.names(self.form.columns).values(), *self._added)

    @property
    def _added(self) -> list[str]:
        typed = self.event or self.form.layout == "impressions"
        return [c for c in (self.event_column if typed else "", self.row_users) if c]

    @property
    def partial(self) -> bool:
        """Whether columns that the recipe names may be absent; those of user, item and time are not."""
        return self.test or self.own or bool(self.copy)

    def open(self) -> pa.NativeFile:
        """The file for random access; compressed bytes stay compressed."""
        system, path = filesystem(self.copy or self.name)
        return system.open_input_file(path)


@dataclass(frozen=True)
class Split:
    """A share of a file: bytes or, of Parquet, row groups from `start` to `end`.

    `number` orders splits as the input; `whole` is a text file read in one go.
    """

    number: int
    source: Source
    start: int
    end: int
    whole: bool
    rows: int  # a guess, except of Parquet


def describe(
    name: str, hints: Data | AttributeFile, *, test: bool = False, own: EventSource | None = None
) -> Source:
    """Open a file, check that it is what its name and the recipe say, and find its form and columns.

    Args:
        name: path or URI.
        hints: what the recipe says of all event files, or of the attribute file.
        test: whether it is one of `split.test_events`.
        own: the entry of [[data.sources]] that names it.

    Raises:
        DataError: absent, empty, truncated, disguised, or with columns that cannot be.
    """
    form = find_form(name, own or hints, guess=False)
    system, path = filesystem(name)
    size = system.get_file_info(path).size
    if isinstance(hints, AttributeFile):
        return Source(name, size, replace(form, sample=pl.DataFrame()))
    renamed = tuple(_renamed(own, hints)) if own else ()
    roles = {ours: theirs for theirs, ours in renamed}
    user, item = (roles.get(column, column) for column in (hints.user, hints.item))
    if form.layout != "events":
        others = [roles.get(c, c) for c in (*hints.time_columns, hints.event, hints.value)]
        items = form.columns[-1] if form.ragged else item
        form = replace(form, items=items, parallel=find_parallel(form.sample, items, others))
    by_row = form.layout == "lists" and user not in form.columns
    return Source(
        name, size, replace(form, sample=pl.DataFrame()), renamed,
        event=own.event if own else "", event_column=hints.event, row_users=hints.user if by_row else "",
        label=PurePosixPath(name).name, test=test, own=own is not None,
    )  # fmt: skip


def missing_header(source: Source, others: Iterable[Source]) -> str:
    """What to do about a file without a header whose columns nobody names; empty where it has names."""
    form = source.form
    if form.header or form.format != "csv" or form.ragged:
        return ""
    same = (o.form for o in others if o.form.header and len(o.form.columns) == len(form.columns))
    names = next((form.columns for form in same if form.format == "csv"), form.columns)
    columns = ", ".join(f'"{name}"' for name in names)
    key = "columns, in its [[data.sources]]," if source.own else "data.columns"
    return f"its first line is a row, not a header; name its columns in their order: {key} = [{columns}]"


def _renamed(own: EventSource, data: Data) -> Iterator[tuple[str, str]]:
    """Pairs of a column's name in the file and in the recipe."""
    times = [own.timestamp] if isinstance(own.timestamp, str) else own.timestamp
    pairs = [
        (own.user, data.user),
        (own.item, data.item),
        (own.event_column, data.event),
        (own.value, data.value),
    ]
    pairs += list(zip(filter(None, times), data.time_columns, strict=False))
    yield from ((theirs, ours) for theirs, ours in pairs if theirs and ours and theirs != ours)


def cut(source: Source, first: int) -> list[Split]:
    """The splits of a file, numbered from `first`."""
    form = source.form
    if form.format == "parquet":
        return _row_groups(source, first)
    rows = source.size * (GZIP_RATIO if form.gzip else 1) // ROW_BYTES + 1
    if not form.seekable or form.format == "json":
        return [Split(first, source, 0, source.size, True, rows)]
    with source.open() as file:
        start = 0
        for _ in range(form.lines):
            start = _after_newline(file, start, source.size)
        if source.row_users:  # rows are numbered from the first one of the file
            return [Split(first, source, start, source.size, True, rows)]
        edges = list(_edges(file, start, source.size))
    return [
        Split(first + i, source, start, end, len(edges) == 2, max(1, (end - start) // ROW_BYTES))
        for i, (start, end) in enumerate(pairwise(edges))
    ]


def _edges(file: pa.NativeFile, start: int, size: int) -> Iterator[int]:
    yield start
    while start + SPLIT_BYTES * 3 // 2 < size:
        start = _after_newline(file, start + SPLIT_BYTES, size)
        yield start
    if start < size:
        yield size


def _after_newline(file: pa.NativeFile, position: int, size: int) -> int:
    while position < size:
        part = file.read_at(min(1 << 16, size - position), position)
        newline = part.find(b"\n")
        if newline >= 0:
            return int(position + newline + 1)
        position += len(part)
    return size


def _row_groups(source: Source, first: int) -> list[Split]:
    with source.open() as file:
        metadata = pq.ParquetFile(file).metadata
    splits: list[Split] = []
    start = rows = 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= GROUP_ROWS or group == metadata.num_row_groups - 1:
            splits.append(Split(first + len(splits), source, start, group + 1, True, rows))
            start, rows = group + 1, 0
    return splits
