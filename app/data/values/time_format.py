"""Patterns of times as `data.time_format` takes them: which contradict themselves, and which fit a spelling.

The directives are those of chrono (docs.rs/chrono, module format::strftime), which polars parses with;
`.%f` is a fraction of a second, as in Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from itertools import product

from app.errors import RecipeError

_DIRECTIVE = re.compile(r"%(\.[369]?f|[369]f|:{1,3}z|#z|[-_0]?.|$)")
_YEAR, _MONTH, _WEEK = {"Y", "y", "G", "g"}, {"m", "b", "B", "h"}, {"U", "W", "V"}
_DATE = {"c", "D", "x", "F", "v", "+", "s"}
_24_HOURS, _12_HOURS, _HALF = {"H", "k", "T", "R", "X", "c", "+"}, {"I", "l", "r"}, {"p", "P", "r"}
_FRACTION = {".f", ".3f", ".6f", ".9f", "3f", "6f", "9f"}
_OTHER = {
    "C",
    "q",
    "d",
    "e",
    "a",
    "A",
    "w",
    "u",
    "j",
    "M",
    "S",
    "z",
    ":z",
    "::z",
    ":::z",
    "#z",
    "t",
    "n",
    "%",
}
_KNOWN = _YEAR | _MONTH | _WEEK | _DATE | _24_HOURS | _12_HOURS | _HALF | _FRACTION | _OTHER
_DATES = [f"%{a}{sep}%{b}{sep}%{year}" for year in "Yy" for sep in "/-." for a, b in ("md", "dm")]
_CLOCKS = ["", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", "T%H:%M:%S", ", %H:%M:%S"]
_AMBIGUOUS = [date + clock for date, clock in product(_DATES, _CLOCKS)]


def contradiction(pattern: str) -> str:
    """Why no time can be read by a pattern; "" where one can."""
    names = _names(chrono(pattern))
    unknown = next((name for name in names if name not in _KNOWN), None)
    if unknown == "f":
        return "%f counts nanoseconds: write .%f, or %3f, %6f or %9f by the number of digits"
    if unknown is not None:
        return f"%{unknown} is no directive that times are read by"
    twice = next((name for name in names if names.count(name) > 1 and name not in {"%", "t", "n"}), None)
    if twice is not None:
        return f"%{twice} stands twice"
    return _clock_trouble(set(names)) or _date_trouble(set(names))


def check_format(pattern: str) -> None:
    """Check `data.time_format`.

    Raises:
        RecipeError: the pattern contradicts itself; says why.
    """
    if reason := contradiction(pattern):
        raise refused(pattern, reason)


def refused(pattern: str, reason: str) -> RecipeError:
    """The error about a pattern that no time can be read by."""
    remedy = 'write e.g. "%d/%m/%Y %H:%M" or "%m/%d/%Y %I:%M %p"'
    return RecipeError(f"{pattern!r} cannot be: {reason}", where="data.time_format", remedy=remedy)


def _names(pattern: str) -> list[str]:
    """Its directives; padding (%-d) is left out, and "" stands for a single % at the end."""
    names = [str(match[1]) for match in _DIRECTIVE.finditer(pattern)]
    return [name if name in _KNOWN or len(name) < 2 else name.lstrip("-_0") for name in names]


def _clock_trouble(names: set[str]) -> str:
    whole, half, meridiem = names & _24_HOURS, names & _12_HOURS, names & _HALF
    if whole and (half or meridiem):
        return f"%{min(whole)} counts 24 hours, %{min(half | meridiem)} says which 12 of them: use %I with %p"
    if half and not meridiem:
        return f"%{min(half)} counts 12 hours, and no %p says which"
    if meridiem and not half:
        return f"%{min(meridiem)} says which 12 hours, and no %I counts them"
    return "minutes without hours" if "M" in names and not whole | half else ""


def _date_trouble(names: set[str]) -> str:
    if names & _DATE or (names & _YEAR and names & (_MONTH | _WEEK | {"j"})):
        return ""
    return "it has no month" if names & _YEAR else "it has no year"


def chrono(pattern: str) -> str:
    """A pattern with Python's `.%f` as chrono writes it."""
    return pattern.replace(".%f", "%.f")


def ambiguous_formats(values: Iterable[str]) -> list[str]:
    """Patterns by which all of some texts are dates whose day and month stand before the year.

    Both orders of day and month where no text decides between them; [] where the texts are no such dates.
    """
    left = _AMBIGUOUS
    for value in values:
        left = [pattern for pattern in left if _fits(value.strip(), pattern)]
        if not left:
            return []
    return left


def _fits(value: str, pattern: str) -> bool:
    try:
        datetime.strptime(value, pattern)
    except ValueError:
        return False
    return True


def advice(value: str) -> str:
    """What to do about a text that is no time."""
    formats = ambiguous_formats([value])
    if formats:
        choices = " or ".join(f'"{pattern}"' for pattern in formats)
        return f"set data.time_format = {choices}, by whether the month or the day comes first"
    return 'set data.time_format (e.g. "%d/%m/%Y %H:%M") or data.time_unit'
