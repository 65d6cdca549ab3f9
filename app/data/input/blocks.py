"""A split as blocks of UTF-8 text that end at line ends, whatever its encoding and compression."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

import pyarrow as pa

from app.data.input.form.encoding import transcoder
from app.data.input.source import SPLIT_BYTES, Split
from app.data.input.text.json_array import elements

_JSON_BYTES = 4 << 20


def blocks(split: Split) -> Iterator[bytes]:
    """The lines of a split, header and byte order mark left out; of a JSON array its elements, one a line.

    A share of a file is one block, a whole file several.

    Raises:
        UnicodeDecodeError: the text is in another encoding.
        pa.ArrowException, OSError, EOFError: damaged or truncated gzip.
    """
    form = split.source.form
    if form.format == "json":
        yield from _whole_lines(elements(_text(split, _JSON_BYTES), split.source.name))
        return
    skip = form.lines if split.start == 0 else 0
    for block in _whole_lines(_text(split, SPLIT_BYTES)):
        for _ in range(skip):
            block = block.partition(b"\n")[2]
        skip = 0
        if block:
            yield block


def _text(split: Split, size: int) -> Iterator[bytes]:
    form = split.source.form
    decoded = transcoder(form.encoding)
    with split.source.open() as file:
        if not split.whole:
            yield decoded(bytes(file.read_at(split.end - split.start, split.start)))
            return
        file.seek(split.start)
        stream = pa.CompressedInputStream(file, "gzip") if form.gzip else file
        first = split.start == 0
        while raw := bytes(stream.read(size)):
            text = decoded(raw)
            yield text.removeprefix(codecs.BOM_UTF8) if first else text
            first = False


def _whole_lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Parts of a text cut anew, each behind its last newline; a last line without one joins its block."""
    block = rest = b""
    for part in parts:
        head, newline, tail = part.rpartition(b"\n")
        if newline:
            if block:
                yield block
            block, rest = rest + head + newline, tail
        else:
            rest += part
    if (block + rest).strip():
        yield block + rest
