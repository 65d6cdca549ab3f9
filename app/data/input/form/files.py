"""The input files: paths, folders, globs and URIs as names of files, and the endings that are taken."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

import pyarrow as pa
from pyarrow import fs

from app.errors import DataError

Format = Literal["csv", "jsonl", "json", "parquet"]
# Of text of other names, .dat for one, the content says how it is read.
_ENDINGS: dict[str, Format | None] = {
    ".csv": "csv", ".tsv": "csv", ".txt": None, ".dat": None, ".data": None, ".inter": "csv",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
ENDINGS = tuple(_ENDINGS)


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
        remedy = (
            f"correct {key}; paths count from the recipe's folder; of a folder {', '.join(ENDINGS)} are taken"
        )
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
    return not hidden and path.lower().removesuffix(".gz").endswith(ENDINGS)


def suffix_format(name: str) -> tuple[Format | None, bool]:
    """The format that a name's ending promises, None where any text may have it; whether it is compressed."""
    lower = name.lower()
    gzip = lower.endswith(".gz")
    lower = lower.removesuffix(".gz")
    return next((kind for ending, kind in _ENDINGS.items() if lower.endswith(ending)), None), gzip


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
