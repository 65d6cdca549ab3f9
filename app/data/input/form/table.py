"""Text as a table: its delimiter, quotes, header and columns, from the first lines."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from app.data.input.text.fields import SEPARATOR, fields_of, find_delimiter, has_header, kind
from app.data.input.text.quotes import judge, mend
from app.errors import DataError, RecipeError

SAMPLE_ROWS, _LINES = 1000, 200
_TYPED = re.compile(r"(.+):(token|float|token_seq|float_seq)")  # names of RecBole's atomic files


@dataclass(frozen=True)
class Table:
    """How lines are cut into the fields of columns, as `Form` explains it, and the first rows."""

    delimiter: str
    quote: str
    header: bool
    lines: int
    columns: tuple[str, ...]
    width: int
    ragged: bool
    sequences: tuple[str, ...]
    guessed: frozenset[str]
    sample: pl.DataFrame


@dataclass(frozen=True)
class Known:
    """What a recipe says of a table; empty: it is to be found. `key` is the key of the names."""

    delimiter: str
    quote: str
    names: Sequence[str]
    key: str
    lists: bool  # whether rows list items
    guess: bool  # whether they may do so unless the recipe says it
    columns: frozenset[str] = frozenset()  # that the recipe gives a role, by their names in the file


def find_table(text: str, whole: bool, name: str, known: Known) -> Table:
    """Find what is not known.

    Args:
        text: the beginning of the file.
        whole: whether that is all of it.
        name: of the file, for messages.
        known: what the recipe says.

    Raises:
        DataError: names that do not fit the lines, or the same name twice.
        RecipeError: a delimiter that cannot be.
    """
    lines = [line for line in _lines(text, whole)[: _LINES + 1] if line.strip()]
    if any(mark in known.delimiter for mark in ("\n", "\r", '"')):
        raise RecipeError(f"{known.delimiter!r} cannot be", where="data.delimiter", remedy="write e.g. ','")
    delimiter = known.delimiter or find_delimiter(lines, name, lists=known.lists)
    quote = _find_quote(text, delimiter) if known.quote == "auto" else known.quote
    rows, ends = _rows(text, whole, delimiter, quote)
    widths = [len(row) for row in rows]
    header = _header(rows, name, known)
    names = list(known.names) or (rows[0] if header else [])
    ragged = _is_ragged(widths[header:], names, known)
    if ragged and not names:
        names = _list_names(rows)
    width = _usual(list(widths[header:]) or widths)
    if not names:
        names = [""] * width
    columns = [n.strip() or f"column{i + 1}" for i, n in enumerate(names)]
    columns, sequences = _without_types(columns)
    _check(columns, width, name, known, ragged)
    guessed = {"delimiter"} if not known.delimiter and delimiter not in lines[0] else set()
    guessed |= set() if known.names else {"header"}
    guessed |= {"layout"} if ragged and not known.lists else set()
    body = rows[header : header + SAMPLE_ROWS]
    return Table(
        delimiter, quote, header, ends[0] if header else 0, tuple(columns), max(width, len(columns)), ragged,
        tuple(sequences), frozenset(guessed), _sample(body, columns, delimiter if ragged else ""),
    )  # fmt: skip


def _lines(text: str, whole: bool) -> list[str]:
    lines = text.splitlines() if "\n" not in text else text.split("\n")
    return [line.removesuffix("\r") for line in (lines if whole or len(lines) < 2 else lines[:-1])]


def _find_quote(text: str, delimiter: str) -> str:
    """Whether quotes enclose fields: not where fields begin with one and none ends with it."""
    if '"' not in text:
        return '"'
    mark = re.escape(delimiter)
    opened = re.search(rf'(?:\A|\n|{mark})"', text)
    closed = re.search(rf'(?:\A|\n|{mark})"[^"\n]*(?:""[^"\n]*)*"(?=\Z|\r|\n|{mark})', text)
    lines = re.search(rf'(?:\A|\n|{mark})"[^"]*(?:""[^"]*)*"(?=\Z|\r|\n|{mark})', text)
    return "" if opened and not (closed or lines) else '"'


def _rows(text: str, whole: bool, delimiter: str, quote: str) -> tuple[list[list[str]], list[int]]:
    """The first rows that are not empty, and the number of lines up to the end of each."""
    complete = text if whole or "\n" not in text else text[: text.rfind("\n") + 1]
    if len(delimiter) > 1:
        complete, delimiter = complete.replace(delimiter, SEPARATOR), SEPARATOR
    if quote and quote in complete:
        raw, mark = complete.encode("utf-8", "surrogateescape"), delimiter.encode()
        width = _usual([line.count(mark) + 1 for line in raw.split(b"\n")[:_LINES]])
        if judge(raw, mark) != "closed":
            complete = mend(raw, mark, width, final=whole)[0].decode("utf-8", "surrogateescape")
    reader = fields_of(io.StringIO(complete, newline=""), delimiter, quote)
    rows, ends = [], []
    for row in reader:
        if any(row):
            rows.append(row)
            ends.append(reader.line_num)
        if len(rows) > SAMPLE_ROWS:
            break
    return rows, ends


def _usual(widths: Sequence[int]) -> int:
    return Counter(widths).most_common(1)[0][0] if widths else 1


def _header(rows: list[list[str]], name: str, known: Known) -> bool:
    first = [value.strip() for value in rows[0]]
    if not known.names:
        return not known.columns.isdisjoint(_without_types(first)[0]) or has_header(rows)
    if _without_types(first)[0][: len(known.names)] == list(known.names):
        return True
    if len(first) == len(known.names) and has_header(rows) and _surely_names(rows):
        raise DataError(
            f"its first line names the columns {', '.join(first)}, and {known.key} gives other names to files"
            " without a header",
            where=name,
            remedy=f"remove that line, leave {known.key} out, or describe these files in [[data.sources]]",
        )
    return False


def _surely_names(rows: list[list[str]]) -> bool:
    """Whether numbers stand below a first line of texts, each another."""
    texts = all(kind(value) == "text" for value in rows[0]) and len(set(rows[0])) == len(rows[0])
    numbers = any(kind(a) == "number" for row in rows[1:] for a in row)
    return texts and numbers


def _is_ragged(widths: Sequence[int], names: Sequence[str], known: Known) -> bool:
    """Whether the last column is the rest of a line: rows list items there, however many."""
    if known.lists:
        return any(width != len(names) for width in widths) if names else True
    usual = sum(width == _usual(widths) for width in widths)
    return known.guess and not names and len(widths) > 1 and usual < 0.9 * len(widths) and max(widths) > 2


def _list_names(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of lines that list items: behind the user's id where the first fields differ, or all items."""
    firsts = [row[0] for row in rows]
    return ["user", "item"] if len(set(firsts)) == len(firsts) else ["item"]


def _without_types(columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names without RecBole's types, where all have one, and those of sequences."""
    typed = [_TYPED.fullmatch(column) for column in columns]
    if not all(typed):
        return list(columns), []
    names = [match[1] for match in typed if match]
    return names, [match[1] for match in typed if match and match[2].endswith("_seq")]


def _check(columns: Sequence[str], width: int, name: str, known: Known, ragged: bool) -> None:
    twice = next((n for n in columns if columns.count(n) > 1), None)
    if twice is not None:
        raise DataError(f"two columns are named {twice!r}", where=f"{name}, header", remedy="rename one")
    if known.names and width < len(columns) and not ragged:
        what = f"{known.key} names {len(columns)} columns, and its lines have {width}"
        remedy = f"name them as they stand in the file; or set {known.key.rpartition('.')[0]}.delimiter"
        raise DataError(what, where=name, remedy=remedy)


def _sample(rows: Sequence[Sequence[str]], columns: Sequence[str], joint: str) -> pl.DataFrame:
    """Rows as text columns; surplus fields are left out, or joined in the last column."""
    last = len(columns) - 1
    if joint:
        rows = [[*row[:last], joint.join(row[last:])] for row in rows]
    texts = {
        column: pl.Series(column, [row[i] or None if i < len(row) else None for row in rows], pl.String)
        for i, column in enumerate(columns)
    }
    return pl.DataFrame(texts)
