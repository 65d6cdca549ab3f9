"""Whether values are times, and how they are spelled."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from app.data.values.time_numbers import Micros
from app.data.values.times import times_of
from app.errors import RecipeError
from app.recipe import Data

PROBED = 5_000  # values, evenly over the sample
ENOUGH = 0.98  # share of them that a spelling has to fit
LONGEST = 48  # characters of a time
EARLIEST, LATEST = 631_152_000, 2_208_988_800  # seconds: 1990 to 2040
DAY_US = 86_400_000_000
DAY_FIRST = ("%d/%m/%Y", "%d-%m-%Y", "%d.%m.%Y", "%d/%m/%y", "%d.%m.%y")
MONTH_FIRST = ("%m/%d/%Y", "%m-%d-%Y", "%m.%d.%Y", "%m/%d/%y", "%m.%d.%y")
OTHERS = ("%Y/%m/%d", "%Y.%m.%d", "%m %d, %Y", "%b %d, %Y", "%B %d, %Y", "%d %b %Y", "%d-%b-%Y")
CLOCKS = (
    "",
    " %H:%M",
    " %H:%M:%S",
    " %H:%M:%S%.f",
    " %I:%M %p",
    " %I:%M:%S %p",
    ", %H:%M:%S",
    ", %I:%M:%S %p",
)
WHOLE = ("%a %b %d %H:%M:%S %z %Y", "%d/%b/%Y:%H:%M:%S %z", "%Y%m%d%H%M%S")


@dataclass(frozen=True)
class Spelling:
    """How times are spelled.

    Attributes:
        format: strptime pattern for `data.time_format`; "" where none is needed.
        other: a second pattern that fits as well, with day and month the other way about; "" mostly.
        days: whether the times are days without a time of day.
    """

    format: str = ""
    other: str = ""
    days: bool = False


def find_spelling(values: pl.Series) -> Spelling | None:
    """The spelling of times that the values have, None where they are no times between 1990 and 2040."""
    if not len(values):
        return None
    probe = values.gather_every(max(1, len(values) // PROBED))
    if not _likely(probe):
        return None
    parsed, valid = times_of(probe, Data())
    if valid.mean() >= ENOUGH and _plausible(parsed[valid]):
        return Spelling(days=bool((parsed[valid] % DAY_US == 0).all()))
    return _by_pattern(probe)


def _likely(probe: pl.Series) -> bool:
    """Whether values have the look of times; numbers only where they are of the size of one."""
    numbers = probe.cast(pl.Float64, strict=False)
    if numbers.null_count() < len(probe) * (1 - ENOUGH) + 1e-9:
        low, high = numbers.min(), numbers.max()
        sizes = [(EARLIEST * unit, LATEST * unit) for unit in (1, 10**3, 10**6, 10**9)]
        basic = probe.str.contains(r"^(19|20)\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])(\d{6})?$").mean() == 1
        return basic or any(a <= low and high <= b for a, b in sizes)  # type: ignore[operator]
    digits = probe.str.contains(r"\d").sum() >= ENOUGH * len(probe)
    return digits and bool((probe.str.len_chars() < LONGEST).all())


def _plausible(micros: Micros) -> bool:
    return bool(micros.min() >= EARLIEST * 10**6 and micros.max() <= LATEST * 10**6)


def _by_pattern(probe: pl.Series) -> Spelling | None:
    fits = [pattern for pattern in _patterns() if _fits(probe, pattern)]
    if not fits:
        return None
    first = fits[0]
    days = not any(mark in first for mark in ("%H", "%I"))
    pairs = dict(zip((*DAY_FIRST, *MONTH_FIRST), (*MONTH_FIRST, *DAY_FIRST), strict=True))
    others = [p for p in fits[1:] if any(first.startswith(a) and p.startswith(b) for a, b in pairs.items())]
    return Spelling(first, others[0] if others else "", days)


def _patterns() -> list[str]:
    """Patterns to try; with AM and PM the month comes first, as where these are written."""
    plain = [
        date + clock for date in (*DAY_FIRST, *MONTH_FIRST, *OTHERS) for clock in CLOCKS if "%p" not in clock
    ]
    twelve = [
        date + clock for date in (*MONTH_FIRST, *DAY_FIRST, *OTHERS) for clock in CLOCKS if "%p" in clock
    ]
    return [*twelve, *plain, *WHOLE]


def _fits(probe: pl.Series, pattern: str) -> bool:
    try:
        times, valid = times_of(probe, Data(time_format=pattern))
    except RecipeError:  # a pattern that nobody could write
        return False
    return bool(valid.mean() >= ENOUGH) and _plausible(times[valid])
