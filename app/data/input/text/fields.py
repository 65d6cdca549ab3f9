"""Lines of text as fields: which delimiter, which quotes, and whether the first line names the columns.

All of it is found from the first lines alone; nothing depends on a file's name but the delimiter of lines
in which none can be found.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# In the order of preference: what rarely stands within a value comes first.
DELIMITERS = ("::", "\t", ";", ",", "|", " ")
SEPARATOR = "\x1f"  # stands for a delimiter of several characters; control characters are no text
MISSING = frozenset(["", "na", "nan", "n/a", "null", "none", "\\n"])
_ALIKE, _MOST = 0.9, 0.5  # share of lines with the same number of fields: of a table, of the best guess
_NUMBER = re.compile(r"[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?")
_TIME = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ,].*)?|\d{1,2}:\d{2}.*|\d{8}T\d{4,6}.*")
csv.field_size_limit(1 << 30)
_LETTERS, _DIGITS = re.compile(r"[^\W\d_]+"), re.compile(r"\d+")


def split_line(line: str, delimiter: str, quote: str) -> list[str]:
    """The fields of one line; quotes that are not closed before its end are letters."""
    if not quote or quote not in line:
        return line.split(delimiter)
    text = line.replace(delimiter, SEPARATOR) if len(delimiter) > 1 else line
    return next(csv.reader([text], delimiter=text_delimiter(delimiter)), [""])


def text_delimiter(delimiter: str) -> str:
    """The single character that a delimiter becomes where text is parsed."""
    return delimiter if len(delimiter) == 1 else SEPARATOR


def fields_of(lines: Iterable[str], delimiter: str, quote: str) -> Any:
    """A reader of the standard library over lines whose quotes all enclose fields, or are letters."""
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE)


def find_delimiter(lines: Sequence[str], name: str, *, lists: bool) -> str:
    """The delimiter that cuts most lines, the first among them, into the same number of fields.

    Args:
        lines: the first lines of a text, none of them empty.
        name: of the file; its ending counts where no delimiter is found.
        lists: whether lines are known to list items, some of them perhaps one alone.
    """
    default = "\t" if ".tsv" in name.lower() else ","
    counts = {d: [len(_quoted_split(line, d)) for line in lines] for d in DELIMITERS}
    shares = {d: _share_alike(widths) for d, widths in counts.items()}
    # Where quotes enclose fields of several lines, a line is no row and its parts look like a table of words.
    for tables in (_tables({d: _share_alike(_row_widths(lines, d)) for d in DELIMITERS}), _tables(shares)):
        if tables:
            return tables[0]
    # No table: lines of several lengths, as lists have.
    least = _MOST if lists else _ALIKE
    ragged = [d for d, widths in counts.items() if sum(w > 1 for w in widths) >= least * len(widths)]
    if ragged:
        return ragged[0]
    best = max(DELIMITERS, key=lambda d: shares[d][0])
    return best if shares[best][0] >= _MOST else default


def _tables(shares: Mapping[str, tuple[float, bool]]) -> list[str]:
    return [d for d, (share, first) in shares.items() if share >= _ALIKE and first]


def _row_widths(lines: Sequence[str], delimiter: str) -> list[int]:
    """Numbers of fields of rows, of which quoted fields reach over lines; none where each line is a row."""
    if not any('"' in line for line in lines):
        return []
    texts = [f"{line.replace(delimiter, text_delimiter(delimiter))}\n" for line in lines]
    rows = list(fields_of(texts, text_delimiter(delimiter), '"'))
    return [len(row) for row in rows[:-1]] if len(rows) < len(lines) else []  # the last one may be cut off


def _quoted_split(line: str, delimiter: str) -> list[str]:
    return split_line(line, delimiter, '"')


def _share_alike(widths: Sequence[int]) -> tuple[float, bool]:
    """Share of lines that have the most frequent number of fields, or an empty field more; and whether
    the first line has about as many."""
    several = Counter(w for w in widths if w > 1)
    if not several:
        return 0.0, False
    width, count = several.most_common(1)[0]
    return count / len(widths), widths[0] > 1 and abs(widths[0] - width) <= max(1, width // 4)


def has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns.

    It does where a column below holds numbers or times alone and the name is neither; it does not where
    a field of it is a number or a time, comes again below it, or is spelled like what is below it.
    """
    first, rest = rows[0], rows[1:]
    if any(kind(value) in ("number", "time") for value in first):
        return False
    if not rest:
        return True
    columns = [
        [row[i] for row in rest if i < len(row) and kind(row[i]) != "missing"] for i in range(len(first))
    ]
    if any(_names_numbers(value, column) for value, column in zip(first, columns, strict=True)):
        return True
    again = [
        value in column for value, column in zip(first, columns, strict=True) if kind(value) != "missing"
    ]
    if any(again) and not any(list(row) == list(first) for row in rest):
        return False
    shapes = [shape(value) for value in first]
    alike = all(_usual_shape(column) == s for s, column in zip(shapes, columns, strict=True) if column)
    return not (alike and any("9" in s for s in shapes))


def _names_numbers(value: str, column: Sequence[str]) -> bool:
    kinds = Counter(map(kind, column))
    figures = kinds["number"] + kinds["time"]
    return kind(value) == "text" and figures >= max(1, _ALIKE * len(column))


def _usual_shape(column: Sequence[str]) -> str:
    usual, count = Counter(map(shape, column)).most_common(1)[0]
    return usual if count >= 0.8 * len(column) else ""


def kind(value: str) -> str:
    """What a field looks like: missing, number, time or text."""
    text = value.strip()
    if text.lower() in MISSING:
        return "missing"
    if _NUMBER.fullmatch(text):
        return "number"
    return "time" if _TIME.fullmatch(text) else "text"


def shape(value: str) -> str:
    """A value with its runs of letters and digits cut to one each: "AB-12" is "a-9"."""
    return _DIGITS.sub("9", _LETTERS.sub("a", value.strip()))
