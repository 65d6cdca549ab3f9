"""The input files: which there are, what they hold, and how they are cut into splits for several cores.

A split is a byte range of plain CSV or JSON lines that starts and ends at a newline, some
row groups of a Parquet file, or a whole compressed file.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from app.data.input.format import Format, header, refuse_disguise, suffix_format
from app.errors import DataError
from app.recipe import Data

SPLIT_BYTES = 32 << 20
GROUP_ROWS = 500_000  # rows of Parquet a split holds, where its row groups allow
ROW_BYTES, GZIP_RATIO = 60, 6  # to guess the rows of a text file


@dataclass(frozen=True)
class Source:
    """An input file, or a feedback log of which there is a copy.

    Attributes:
        name: path or URI, as messages show it.
        header: lines before the first row.
        test: a file of `split.test_events`.
        copy: path of the copy that is read in its stead; empty for files.
    """

    name: str
    format: Format
    gzip: bool
    size: int
    columns: tuple[str, ...]
    header: int = 0
    test: bool = False
    copy: str = ""

    @property
    def partial(self) -> bool:
        """Whether columns that the recipe names may be absent; those of user, item and time are not."""
        return self.test or bool(self.copy)

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


def filesystem(name: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path there."""
    if "://" not in name:
        return fs.LocalFileSystem(), name
    try:
        return fs.FileSystem.from_uri(name)  # type: ignore[no-any-return]
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise DataError(f"cannot open this address ({error})", where=name, remedy="check the URI") from None


def find(entries: Sequence[str], *, key: str = "data.events") -> list[str]:
    """Names of the files that paths, folders, globs and URIs stand for, in order.

    Raises:
        DataError: nothing is there.
    """
    if not entries:
        raise DataError("no input files are named", where=key, remedy=f"set {key} in the recipe")
    return [name for entry in entries for name in _expand(entry, key)]


def _expand(entry: str, key: str) -> list[str]:
    system, path = filesystem(entry)
    prefix = entry[: len(entry) - len(path)] if "://" in entry and entry.endswith(path) else ""
    try:
        names = list(_files(system, path))
    except OSError as error:
        raise DataError(f"cannot be read ({error})", where=entry, remedy=f"correct {key}") from None
    if not names:
        remedy = f"correct {key}; relative paths count from the recipe's folder"
        raise DataError("no such file, or no data file in the folder", where=entry, remedy=remedy)
    return [prefix + name for name in names]


def _files(system: fs.FileSystem, path: str) -> Iterator[str]:
    if any(mark in path for mark in "*?["):
        base = "/".join(_take_plain(PurePosixPath(path).parts)).replace("//", "/")
        listed = system.get_file_info(fs.FileSelector(base or ".", recursive=True, allow_not_found=True))
        names = (i.path for i in listed if i.type == fs.FileType.File)
        # `**/` may stand for no folder at all.
        patterns = {path, path.replace("**/", "")}
        yield from sorted(n for n in names if any(_matches(n, p) for p in patterns))
        return
    info = system.get_file_info(path)
    if info.type == fs.FileType.File:
        yield path
    elif info.type == fs.FileType.Directory:
        listed = system.get_file_info(fs.FileSelector(path, recursive=True))
        yield from sorted(i.path for i in listed if i.type == fs.FileType.File and _is_data(i.path))


def _take_plain(parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        if any(mark in part for mark in "*?["):
            return
        yield part


def _matches(name: str, pattern: str) -> bool:
    deep = "**" in pattern or name.count("/") == pattern.count("/")
    return deep and fnmatch.fnmatchcase(name, pattern)


def _is_data(path: str) -> bool:
    hidden = any(part.startswith(("_", ".")) for part in PurePosixPath(path).parts[-1:])
    return not hidden and suffix_format(path)[0] is not None


def describe(name: str, data: Data, *, test: bool = False) -> Source:
    """Open a file, check that it is what its name says, and read its columns.

    Raises:
        DataError: absent, empty, truncated, disguised or without a header.
    """
    system, path = filesystem(name)
    info = system.get_file_info(path)
    if info.type != fs.FileType.File:
        raise DataError("no such file", where=name, remedy="correct the path in the recipe")
    if info.size == 0:
        raise DataError("the file is empty (0 bytes)", where=name, remedy="give a file with rows")
    by_suffix, gzip = suffix_format(name)
    kind = by_suffix if data.format == "auto" else data.format
    if kind is None:
        remedy = "name it .csv, .jsonl or .parquet (or .gz of these), or set data.format"
        raise DataError("its ending does not say what it holds", where=name, remedy=remedy)
    try:
        with system.open_input_file(path) as file:
            refuse_disguise(file, name, kind, gzip, info.size)
            columns, lines = header(file, name, kind, gzip, data)
    except OSError as error:
        raise DataError(f"cannot be read ({error})", where=name, remedy="see to its permissions") from None
    return Source(name, kind, gzip, info.size, tuple(columns), lines, test)


def cut(source: Source, first: int, data: Data) -> list[Split]:
    """The splits of a file, numbered from `first`."""
    if source.format == "parquet":
        return _row_groups(source, first)
    rows = source.size * (GZIP_RATIO if source.gzip else 1) // ROW_BYTES + 1
    if source.gzip or data.encoding.lower().replace("-", "").startswith(("utf16", "utf32")):
        return [Split(first, source, 0, source.size, True, rows)]
    with source.open() as file:
        start = 0
        for _ in range(source.header):
            start = _after_newline(file, start, source.size)
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


def digests(names: Sequence[str]) -> dict[str, str]:
    """File name -> digest of its size and time of change, which stand for its content."""
    result: dict[str, str] = {}
    for name in names:
        system, path = filesystem(name)
        info: Any = system.get_file_info(path)
        if info.type != fs.FileType.File:
            raise DataError("no such file", where=name, remedy="correct the path in the recipe")
        result[name] = hashlib.sha256(f"{info.size} {info.mtime_ns}".encode()).hexdigest()
    return result
