"""Times of any spelling as microseconds since the epoch, UTC.

Numbers count by `time_unit`; 'auto' goes by the size of each: below 1e11 seconds, below
1e14 milliseconds, below 1e17 microseconds, else nanoseconds. Text is ISO 8601 (UTC where it
names no zone) or `time_format`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from app.data.values.text import number_of
from app.events import microseconds
from app.recipe import Data

_UNITS = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
_BOUNDS = ((1e11, 1e6), (1e14, 1e3), (1e17, 1.0), (np.inf, 1e-3))
_ISO = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d", "%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M:%S%.f")
_PROBE = 100
LIMIT = 9e18  # microseconds that fit 64 bits


def times_of(series: pl.Series, data: Data) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Microseconds (N,), and which of them are times at all (N,)."""
    if series.dtype.is_temporal():
        micros = _typed(series)
    elif series.dtype == pl.String:
        micros = _text(series, data)
    else:
        micros = _numeric(number_of(series), data)
    return micros.fill_null(0).to_numpy(), micros.is_not_null().to_numpy()


def _typed(series: pl.Series) -> pl.Series:
    if series.dtype == pl.Date:
        series = series.cast(pl.Datetime("us"))
    if not isinstance(series.dtype, pl.Datetime):
        return pl.repeat(None, len(series), dtype=pl.Int64, eager=True)
    return series.dt.epoch("us")


def _text(series: pl.Series, data: Data) -> pl.Series:
    """Each spelling is tried on what the ones before left, where the first rows left have it."""
    if data.time_format:
        return _parse(series.str.strip_chars(), data.time_format)
    parsed, left = None, series
    for number, spelling in enumerate([*_ISO, ""]):
        if number == 1:  # few logs have spaces around times; only those pay for stripping
            left = left.str.strip_chars()
        if _spelled(left.drop_nulls().head(_PROBE), spelling, data).is_not_null().any():
            times = _spelled(left, spelling, data)
            parsed = times if parsed is None else parsed.zip_with(parsed.is_not_null(), times)
            left = pl.select(pl.when(parsed.is_null()).then(left)).to_series()
        if left.null_count() == len(left):
            break
    rest = left.drop_nulls().unique()
    if len(rest):
        slow = left.replace_strict({v: _slow(v) for v in rest}, default=None, return_dtype=pl.Int64)
        parsed = slow if parsed is None else parsed.zip_with(parsed.is_not_null(), slow)
    return pl.repeat(None, len(series), dtype=pl.Int64, eager=True) if parsed is None else parsed


def _spelled(text: pl.Series, pattern: str, data: Data) -> pl.Series:
    return _parse(text, pattern) if pattern else _numeric(number_of(text), data)


def _parse(text: pl.Series, pattern: str) -> pl.Series:
    """strptime; null where it does not fit. A pattern with only a date is midnight."""
    if "%H" not in pattern and "%I" not in pattern and "%T" not in pattern and "%s" not in pattern:
        return text.str.to_date(pattern, strict=False).cast(pl.Datetime("us")).dt.epoch("us")
    return text.str.to_datetime(pattern, time_unit="us", strict=False).dt.epoch("us")


def _slow(value: str) -> int | None:
    try:
        return microseconds(value)
    except (ValueError, OverflowError):
        return None


def _numeric(numbers: pl.Series, data: Data) -> pl.Series:
    x = numbers.to_numpy()  # NaN where null
    if data.time_unit == "auto":
        size = np.abs(x)
        scale = np.select([size < bound for bound, _ in _BOUNDS], [factor for _, factor in _BOUNDS], np.nan)
    else:
        scale = np.full(len(x), _UNITS[data.time_unit])
    micros = x * scale
    good = np.abs(micros) < LIMIT  # false for NaN
    whole = np.where(good, np.round(np.where(good, micros, 0)), 0).astype(np.int64)
    return pl.select(pl.when(pl.Series(good)).then(pl.Series(whole))).to_series()
