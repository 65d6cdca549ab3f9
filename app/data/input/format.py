"""The format of a file by its ending and its first bytes, and the columns that its header names."""

from __future__ import annotations

import codecs
import csv
import io
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from app.errors import DataError, RecipeError
from app.recipe import Data

Format = Literal["csv", "jsonl", "parquet"]
_ENDINGS: dict[str, Format] = {
    ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_HEAD, _KEYS = 1 << 20, 1 << 18
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstandard",
}
_LABEL = {"csv": "CSV", "jsonl": "JSON lines", "parquet": "Parquet"}
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def suffix_format(name: str) -> tuple[Format | None, bool]:
    """The format that a name's ending promises, and whether it is compressed."""
    lower = name.lower()
    gzip = lower.endswith(".gz")
    lower = lower.removesuffix(".gz")
    return next((kind for ending, kind in _ENDINGS.items() if lower.endswith(ending)), None), gzip


def delimiter(name: str, data: Data) -> str:
    """The CSV delimiter: a tab for .tsv, unless the recipe says otherwise."""
    return "\t" if data.delimiter == "," and ".tsv" in name.lower() else data.delimiter


def refuse_disguise(file: pa.NativeFile, name: str, kind: Format, gzip: bool, size: int) -> None:
    """Check the first and last bytes against what the name or recipe says.

    Raises:
        DataError: the file holds something else, or ends early.
    """
    first = file.read_at(min(size, 4096), 0)
    last = file.read_at(min(size, 4), max(0, size - 4))
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
    return foreign or ("binary data" if b"\0" in first and not first.startswith(_MARKS) else "")


def _disguised(name: str, kind: Format, content: str, gzip: bool = False) -> DataError:
    expected = f"gzip-compressed {_LABEL[kind]}" if gzip else _LABEL[kind]
    return DataError(
        f"should be {expected} by its ending (or data.format), but holds {content}",
        where=name,
        remedy="rename the file to what it holds, or set data.format",
    )


def _sample(first: bytes) -> str:
    return repr(first[:30].decode("utf-8", "replace"))


def header(file: pa.NativeFile, name: str, kind: Format, gzip: bool, data: Data) -> tuple[list[str], int]:
    """Column names, and the number of lines that they take.

    Raises:
        DataError: truncated, not decodable, no header, or a name twice.
    """
    if kind == "parquet":
        try:
            return list(pq.ParquetFile(file).schema_arrow.names), 0
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"damaged Parquet ({error})", where=name, remedy="copy it again") from None
    head = _text_head(file, name, gzip)
    try:
        text = codecs.lookup(data.encoding).decode(head, "replace")[0]
    except LookupError:
        remedy = "write e.g. utf-8 or latin-1"
        raise DataError(f"unknown encoding {data.encoding!r}", where="data.encoding", remedy=remedy) from None
    if head.startswith(_MARKS) and not codecs.lookup(data.encoding).name.startswith("utf-16"):
        raise DataError("is UTF-16", where=name, remedy='set data.encoding = "utf-16"')
    text = text.removeprefix("\ufeff")
    return (_json_keys(text, name), 0) if kind == "jsonl" else _csv_names(text, name, data)


def _text_head(file: pa.NativeFile, name: str, gzip: bool) -> bytes:
    try:
        file.seek(0)
        stream = pa.CompressedInputStream(file, "gzip") if gzip else file
        return bytes(stream.read(_HEAD))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"damaged or truncated gzip ({error})", where=name, remedy="copy it again") from None


def _csv_names(text: str, name: str, data: Data) -> tuple[list[str], int]:
    if not text.strip():
        raise DataError("the file is empty (no text in it)", where=name, remedy="give a file with rows")
    if text.lstrip().startswith("{"):
        raise _disguised(name, "csv", "JSON lines")
    if len(data.delimiter) != 1:
        remedy = "write one character"
        raise RecipeError(f"{data.delimiter!r} cannot be", where="data.delimiter", remedy=remedy)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter(name, data))
    names = next((row for row in reader if row), [])
    names = [n.strip() or f"column{i + 1}" for i, n in enumerate(names)]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise DataError(f"two columns are named {twice!r}", where=f"{name}, header", remedy="rename one")
    return names, reader.line_num


def _json_keys(text: str, name: str) -> list[str]:
    from app.data.input.json_lines import parse_lines

    text = text.lstrip()
    if not text.startswith("{"):
        what = "a JSON array" if text.startswith("[") else f"text that starts with {text[:30]!r}"
        raise _disguised(name, "jsonl", what if text else "no rows")
    complete = text[: text.rfind("\n") + 1] or text
    rows = parse_lines(complete[:_KEYS].encode("utf-8", "replace"))[0]
    return list(dict.fromkeys(key for row in rows for key in row))
