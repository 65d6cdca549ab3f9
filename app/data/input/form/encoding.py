"""The encoding of a text: by its byte order mark, by what decodes, and where it stops to do so."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator

import pyarrow as pa

from app.data.input.form.files import filesystem
from app.data.input.form.format import MARKS
from app.errors import DataError, RecipeError

_READ = 1 << 20
_SCANNED = 256 << 20  # bytes that are looked at to tell an encoding
_UTF8 = "utf-8"


def find_encoding(name: str, wanted: str, head: bytes, gzip: bool, guess: bool) -> tuple[str, bool]:
    """The encoding of a text, and whether it is certain.

    Args:
        name: of the file.
        wanted: the encoding that the recipe names; empty: by the mark, else UTF-8.
        head: the first bytes.
        gzip: whether the file is compressed.
        guess: whether text that is not UTF-8 is taken for Windows-1252 or Latin-1.

    Raises:
        RecipeError: there is no such encoding.
        DataError: UTF-16 by its mark, and the recipe names another encoding.
    """
    if wanted:
        try:
            encoding = codecs.lookup(wanted).name
        except LookupError:
            remedy = "write e.g. utf-8 or latin-1"
            raise RecipeError(f"unknown encoding {wanted!r}", where="data.encoding", remedy=remedy) from None
        if head.startswith(MARKS) and not encoding.startswith("utf-16"):
            raise DataError("is UTF-16", where=name, remedy='set data.encoding = "utf-16", or leave it out')
        return _UTF8 if encoding == "utf-8-sig" else encoding, True
    if head.startswith(MARKS):
        return "utf-16", True
    if not guess or first_undecodable(name, gzip, _UTF8) is None:
        return _UTF8, True
    return ("cp1252" if first_undecodable(name, gzip, "cp1252") is None else "latin-1"), False


def first_undecodable(
    name: str, gzip: bool, encoding: str, limit: int = _SCANNED
) -> tuple[int, int, int] | None:
    """Value, offset and line of the first byte that does not decode; None where all do up to the limit."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line, offset, pending = 1, 0, 0
    for block in _blocks(name, gzip):
        try:
            decoder.decode(block)
        except UnicodeDecodeError as error:
            start = error.start - pending
            return error.object[error.start], offset + start, line + block[: max(start, 0)].count(b"\n")
        pending = len(decoder.getstate()[0])
        line, offset = line + block.count(b"\n"), offset + len(block)
        if offset >= limit:
            break
    return None


def _blocks(name: str, gzip: bool) -> Iterator[bytes]:
    system, path = filesystem(name)
    with system.open_input_file(path) as file:
        stream = pa.CompressedInputStream(file, "gzip") if gzip else file
        while block := bytes(stream.read(_READ)):
            yield block


def wrong_encoding(name: str, gzip: bool, encoding: str) -> DataError:
    """The error that says which byte does not decode, and on which line."""
    remedy = 'set data.encoding, e.g. "latin-1" or "cp1252"'
    bad = first_undecodable(name, gzip, encoding, limit=1 << 62)
    if bad is None:
        return DataError(f"does not decode as {encoding}", where=name, remedy=remedy)
    value, offset, line = bad
    what = f"byte 0x{value:02x} at offset {offset} is not {encoding}"
    return DataError(what, where=f"{name}, line {line}", remedy=remedy)


def transcoder(encoding: str) -> Callable[[bytes], bytes]:
    """A function that turns consecutive blocks of a text into UTF-8."""
    if encoding == _UTF8:
        return bytes
    decoder = codecs.getincrementaldecoder(encoding)()
    return lambda block: decoder.decode(block).encode()
