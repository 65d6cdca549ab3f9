"""The form of a file: its format, and of text how its lines are cut into fields and what they are called.

What a recipe does not say is found from the first megabyte.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from app.data.input.form.encoding import find_encoding
from app.data.input.form.files import Format, filesystem
from app.data.input.form.format import find_format, read_head
from app.data.input.form.table import Known, Table, find_table
from app.data.input.text.json_array import elements
from app.data.input.text.json_lines import frame_of, parse_lines
from app.data.input.text.lists import find_lists
from app.data.input.text.nested import flatten, paths
from app.data.values.text import frame_of_arrow, text_of
from app.errors import DataError
from app.recipe import AttributeFile, Data, EventSource

SAMPLE_ROWS, _KEY_BYTES = 1000, 1 << 18


@dataclass(frozen=True)
class Form:
    """How a file is read.

    Attributes:
        format: what it holds.
        gzip: whether it is compressed.
        delimiter: between the fields of a line.
        encoding: of text.
        quote: what encloses fields; empty where quotes are letters.
        header: whether the first lines name the columns.
        lines: how many lines do.
        columns: names by the header, the recipe or, without either, "column1" and so on.
        width: fields of most lines: more than there are columns where surplus ones are empty.
        layout: what a row is, see `data.layout`.
        items: the column that lists items, where the layout has one; empty: `data.item`.
        ragged: whether that column is the rest of a line.
        parallel: columns that list a value for each item.
        sequences: columns with several values in a field, between blanks.
        guessed: what the file does not say for certain: delimiter, encoding, header, layout.
        sample: up to 1,000 rows as text.
    """

    format: Format
    gzip: bool = False
    delimiter: str = ","
    encoding: str = "utf-8"
    quote: str = '"'
    header: bool = True
    lines: int = 0
    columns: tuple[str, ...] = ()
    width: int = 0
    layout: str = "events"
    items: str = ""
    ragged: bool = False
    parallel: tuple[str, ...] = ()
    sequences: tuple[str, ...] = ()
    guessed: frozenset[str] = frozenset()
    sample: pl.DataFrame = field(default_factory=pl.DataFrame, compare=False, repr=False)

    @property
    def seekable(self) -> bool:
        """Whether text can be read from any line on: newlines are bytes of the file."""
        return not self.gzip and not self.encoding.startswith(("utf-16", "utf-32"))


Hints = AttributeFile | EventSource | Data


def find_form(name: str, hints: Hints, *, guess: bool = True) -> Form:
    """The form of a file, as far as its first megabyte shows it.

    Args:
        name: path or URI.
        hints: what the recipe says of it; a default there means that it is to be found.
        guess: whether an encoding and a layout that the recipe does not name are guessed, too; else text
            is UTF-8 unless it has a byte order mark, and a row is an event.

    Raises:
        DataError: absent, empty, truncated, not text, or not what its ending or the recipe says.
        RecipeError: the recipe names columns or an encoding that cannot be.
    """
    kind, gzip = find_format(name, hints.format)
    layout = "events" if isinstance(hints, AttributeFile) else hints.layout
    form = Form(kind, gzip, layout=layout)
    if kind == "parquet":
        form = replace(form, columns=_parquet_columns(name))
        return _with_layout(replace(form, sample=_parquet_sample(name)), hints) if guess else form
    try:
        head, whole = read_head(name, gzip)
        encoding, certain = find_encoding(name, hints.encoding, head, gzip, guess)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise DataError(f"cannot be read ({error})", where=name, remedy="copy it again") from None
    text = head.decode(encoding, "replace").removeprefix("\ufeff")
    if not text.strip():
        raise DataError("the file is empty (no text in it)", where=name, remedy="give a file with rows")
    form = replace(form, encoding=encoding, guessed=frozenset() if certain else frozenset(["encoding"]))
    if kind != "csv":
        form = _of_json(text, name, form)
        return _with_layout(form, hints) if guess else form
    names = (hints.header, "header") if isinstance(hints, AttributeFile) else (hints.columns, "columns")
    known = Known(
        hints.delimiter, hints.quote, *names, layout == "lists", guess and layout == "events", _roles(hints)
    )
    table = find_table(text, whole, name, known)
    found = {key: getattr(table, key) for key in Table.__dataclass_fields__}
    form = replace(form, **found | {"guessed": form.guessed | table.guessed})
    if form.ragged:
        return replace(form, layout="lists", items=form.columns[-1])
    return _with_layout(form, hints) if guess else form


def _roles(hints: Hints) -> frozenset[str]:
    """Columns that the recipe names: a line that holds one of them is a header."""
    if isinstance(hints, AttributeFile):
        return frozenset([hints.id, *hints.columns])
    times = [hints.timestamp] if isinstance(hints.timestamp, str) else hints.timestamp
    return frozenset(name for name in (hints.user, hints.item, hints.value, *times) if name)


def _with_layout(form: Form, hints: Hints) -> Form:
    if isinstance(hints, AttributeFile) or form.layout != "events":
        return form
    layout, items = find_lists(form.sample)
    return replace(form, layout=layout, items=items, guessed=form.guessed | {"layout"}) if items else form


def _of_json(text: str, name: str, form: Form) -> Form:
    """Paths of the keys in the first quarter of a megabyte, and rows as text."""
    if form.format == "json":
        raw = b"".join(elements([text[:_KEY_BYTES].encode()], name, head=True))
    else:
        raw = text[: text.rfind("\n", 0, _KEY_BYTES) + 1].encode() or text.encode()
    rows = parse_lines(raw)[0]
    if not rows and form.format == "jsonl":
        remedy = "write an object on each line, or an array of objects"
        raise DataError("none of its first lines is a JSON object", where=name, remedy=remedy)
    columns = tuple(paths(rows))
    frame = frame_of(rows[:SAMPLE_ROWS], columns)
    return replace(form, columns=columns, sample=_as_text(frame))


def _parquet_columns(name: str) -> tuple[str, ...]:
    try:
        with _open(name) as file:
            schema = pq.ParquetFile(file).schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"damaged Parquet ({error})", where=name, remedy="copy it again") from None
    return tuple(flatten(frame_of_arrow(schema.empty_table())).columns)


def _parquet_sample(name: str) -> pl.DataFrame:
    with _open(name) as file:
        batches = pq.ParquetFile(file).iter_batches(SAMPLE_ROWS, use_threads=False)
        first = next(batches, None)
        return pl.DataFrame() if first is None else _as_text(flatten(frame_of_arrow(first)))


def _open(name: str) -> pa.NativeFile:
    system, path = filesystem(name)
    return system.open_input_file(path)


def _as_text(frame: pl.DataFrame) -> pl.DataFrame:
    """All columns as text; lists as a blank between their values."""
    texts = [
        series.cast(pl.List(pl.String)).list.join(" ")
        if isinstance(series.dtype, pl.List)
        else text_of(series)
        for series in frame
    ]
    return pl.DataFrame(texts)
