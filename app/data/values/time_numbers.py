"""Numbers as times: microseconds since the epoch, UTC.

Numbers count by `time_unit`. With 'auto', 8, 12 or 14 digits that begin as a date of the years 1900 to 2100
are one (20240131, 202401311015, 20240131101530), or no time at all (20241331); other numbers go by their
size: below 1e11 seconds, below 1e14 milliseconds, below 1e17 microseconds, else nanoseconds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from app.recipe import Data

Micros = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
LIMIT = 9e18  # microseconds that fit 64 bits
DAY = 86_400_000_000
_UNITS = {"s": 1_000_000.0, "ms": 1_000.0, "us": 1.0, "ns": 1e-3}
_BOUNDS = ((1e11, "s"), (1e14, "ms"), (1e17, "us"), (np.inf, "ns"))
_DATES = (  # numbers that write a date: first, last, and the digits behind the date
    (19_000_101, 21_001_231, 0),
    (190_001_010_000, 210_012_312_359, 4),
    (19_000_101_000_000, 21_001_231_235_959, 6),
)


def numeric_times(numbers: pl.Series, data: Data) -> pl.Series:
    """Numbers, or texts that spell them, as microseconds (N,); null where there is none."""
    whole = numbers.cast(pl.Int64, strict=False)
    if numbers.dtype.is_float():
        whole = whole.set((numbers != numbers.round()).fill_null(True), None)
    good = whole.is_not_null().to_numpy()
    micros, fits = _scaled(whole.fill_null(0).to_numpy(), data.time_unit)
    good &= fits
    rest = np.flatnonzero(~good & numbers.is_not_null().to_numpy())
    if len(rest):
        values = numbers.gather(rest).cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
        micros = micros.copy()
        micros[rest], good[rest] = _scaled(values, data.time_unit)
    return pl.select(pl.when(pl.Series(good)).then(pl.Series(micros))).to_series()


def _scaled(x: npt.NDArray[np.int64] | npt.NDArray[np.float64], unit: str) -> tuple[Micros, Mask]:
    """Microseconds (N,) of numbers, exact where those are integers, and which fit 64 bits."""
    if unit != "auto":
        return _times_unit(x, unit)
    size = np.abs(x)
    micros, good = _times_unit(x, "s")
    lower = 1e11
    if size.max(initial=0) >= lower or not np.isfinite(size).all():
        for bound, name in _BOUNDS[1:]:
            here = np.flatnonzero((size >= lower) & (size < bound))
            micros[here], good[here] = _times_unit(x[here], name)
            lower = bound
    for first, last, digits in _DATES:
        if not len(size) or size.min() > last:
            continue
        here = np.flatnonzero((x >= first) & (x <= last) & (x == np.floor(x)))
        date, valid = _written(x[here].astype(np.int64), digits)
        micros[here], good[here] = date, valid
    return micros, good


def _times_unit(x: npt.NDArray[np.int64] | npt.NDArray[np.float64], unit: str) -> tuple[Micros, Mask]:
    factor = _UNITS[unit]
    good = np.abs(x.astype(np.float64) * factor) < LIMIT  # false for NaN
    fitting = np.where(good, x, 0)
    if not np.issubdtype(x.dtype, np.integer):
        return np.round(fitting * factor).astype(np.int64), good
    whole = fitting.astype(np.int64)
    return (whole + 500) // 1000 if unit == "ns" else whole * int(factor), good


def _written(x: Micros, digits: int) -> tuple[Micros, Mask]:
    """Microseconds of numbers that write a date and, in `digits` more, the time of day; and which do."""
    date, clock = x // 10**digits, x % 10**digits * 10 ** (6 - digits)
    year, month, day = date // 10_000, date // 100 % 100, date % 100
    hour, minute, second = clock // 10_000, clock // 100 % 100, clock % 100
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1)
    good = (month >= 1) & (month <= 12) & (day >= 1) & (days.astype("datetime64[M]") == months)
    good &= (hour < 24) & (minute < 60) & (second < 60)
    return days.astype(np.int64) * DAY + ((hour * 60 + minute) * 60 + second) * 1_000_000, good
