"""What a file holds, by its ending and its first bytes."""

from __future__ import annotations

import codecs
from typing import Any

import pyarrow as pa
from pyarrow import fs

from app.data.input.form.files import ENDINGS, Format, filesystem, suffix_format
from app.errors import DataError

HEAD_BYTES = 1 << 20
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstandard",
}
_LABEL = {"csv": "CSV", "jsonl": "JSON lines", "json": "a JSON array", "parquet": "Parquet"}
MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def find_format(name: str, wanted: str = "auto") -> tuple[Format, bool]:
    """The format of a file and whether it is compressed.

    Args:
        name: path or URI.
        wanted: the format that the recipe names, or auto.

    Raises:
        DataError: absent, empty, truncated, or something else than its ending or the recipe says.
    """
    system, path = filesystem(name)
    info = system.get_file_info(path)
    if info.type != fs.FileType.File:
        raise DataError("no such file", where=name, remedy="correct the path in the recipe")
    if info.size == 0:
        raise DataError("the file is empty (0 bytes)", where=name, remedy="give a file with rows")
    by_suffix, gzip = suffix_format(name)
    try:
        with system.open_input_file(path) as file:
            first = file.read_at(min(info.size, 4096), 0)
            last = file.read_at(min(info.size, 4), max(0, info.size - 4))
    except OSError as error:
        raise DataError(f"cannot be read ({error})", where=name, remedy="see to its permissions") from None
    kind: Any = by_suffix if wanted == "auto" else wanted
    if kind is None:  # the ending says nothing: the content does
        gzip = gzip or first.startswith(_GZIP)
        kind = "parquet" if first.startswith(_PARQUET) else "text"
        if kind == "text" and not gzip and (content := _content(first)):
            endings = ", ".join(ENDINGS)
            remedy = f"name it by what it holds ({endings}, or .gz of these), or set data.format"
            raise DataError(
                f"its ending does not say what it holds, and it is {content}", where=name, remedy=remedy
            )
    else:
        _refuse_disguise(name, kind, gzip, first, last)
    if kind in ("text", "jsonl", "json", "csv"):
        kind = _text_format(name, kind, by_suffix, wanted, gzip)
    return kind, gzip


def _text_format(name: str, kind: str, by_suffix: str | None, wanted: str, gzip: bool) -> Format:
    """CSV, JSON lines or a JSON array, by the first character."""
    head = (
        read_head(name, gzip)[0].removeprefix(codecs.BOM_UTF8).replace(b"\0", b"").lstrip(b"\xff\xfe \t\r\n")
    )
    json: Format | None = "jsonl" if head.startswith(b"{") else None
    if head.startswith(b"[") and head[1:].lstrip()[:1] in (b"{", b"]"):
        json = "json"
    if kind == "text":
        return json or "csv"
    if kind == "csv":
        if json:
            raise _disguised(name, kind, _LABEL[json])
        return "csv"
    if json is None and head:
        raise _disguised(name, kind, f"text that starts with {_sample(head)}")
    if wanted == "auto":
        return json or "jsonl"
    if json and json != wanted:
        raise _disguised(name, kind, _LABEL[json])
    return "json" if wanted == "json" else "jsonl"


def read_head(name: str, gzip: bool) -> tuple[bytes, bool]:
    """The first megabyte of a text, uncompressed, and whether that is all.

    Raises:
        DataError: damaged or truncated gzip.
    """
    system, path = filesystem(name)
    try:
        with system.open_input_file(path) as file:
            stream = pa.CompressedInputStream(file, "gzip") if gzip else file
            head = bytes(stream.read(HEAD_BYTES))
            return head, len(head) < HEAD_BYTES or not stream.read(1)
    except (pa.ArrowException, OSError, EOFError) as error:
        what = "damaged or truncated gzip" if gzip else "cannot be read"
        raise DataError(f"{what} ({error})", where=name, remedy="copy it again") from None


def _refuse_disguise(name: str, kind: str, gzip: bool, first: bytes, last: bytes) -> None:
    content = _content(first)
    if kind == "parquet" and not gzip:
        if not first.startswith(_PARQUET):
            raise _disguised(name, kind, content or f"text that starts with {_sample(first)}")
        if last != _PARQUET:
            raise DataError(
                "the Parquet file is truncated: its end is missing", where=name, remedy="copy it again"
            )
    elif gzip != first.startswith(_GZIP) or (content and not gzip):
        raise _disguised(name, kind, content or f"text that starts with {_sample(first)}", gzip)


def _content(first: bytes) -> str:
    if first.startswith(_PARQUET):
        return "Parquet"
    if first.startswith(_GZIP):
        return "gzip-compressed data"
    foreign = next((what for magic, what in _FOREIGN.items() if first.startswith(magic)), "")
    return foreign or ("binary data" if b"\0" in first and not first.startswith(MARKS) else "")


def _disguised(name: str, kind: str, content: str, gzip: bool = False) -> DataError:
    expected = f"gzip-compressed {_LABEL[kind]}" if gzip else _LABEL[kind]
    return DataError(
        f"should be {expected} by its ending (or data.format), but holds {content}",
        where=name,
        remedy="rename the file to what it holds, or set data.format",
    )


def _sample(first: bytes) -> str:
    return repr(first[:30].decode("utf-8", "replace"))
