"""Times of any spelling as microseconds since the epoch, UTC.

Each value counts by itself, whatever stands in other rows. Text is read by `time_format` where there is
one; else it is a number, ISO 8601 (UTC where it names no zone), a date with the year first, or one that
names the month. No two of these spellings read one text differently, so the order in which they are
tried changes the time it takes and nothing else. 1/2/2024 is none of them: nobody knows the month.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import polars as pl

from app.data.values.text import number_of, plain
from app.data.values.time_format import check_format, chrono, refused
from app.data.values.time_numbers import Mask, Micros, numeric_times
from app.events import microseconds
from app.recipe import Data

Reader = Callable[[pl.Series], pl.Series]  # texts -> microseconds, null where they are spelled otherwise
_PROBE = 100
_EARLIEST = -30_610_224_000_000_000  # the year 1000: before it are typing errors and marks of what is missing
_COMMON = (
    "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S UTC",
    "%Y-%m-%dT%H:%M:%S%.fZ",
)  # fmt: skip
_NAMED = (
    "%A %B %d %H:%M:%S %z %Y", "%A %B %d %H:%M:%S %Y", "%A %B %d %H:%M:%S UTC %Y", "%A, %d %B %Y %H:%M:%S %z",
    "%A, %d %B %Y %H:%M:%S GMT", "%d %B %Y %H:%M:%S %z", "%d/%B/%Y:%H:%M:%S %z", "%d %B %Y", "%d %B %Y %H:%M",
    "%d %B %Y %H:%M:%S", "%d-%B-%Y", "%d-%B-%Y %H:%M", "%d-%B-%Y %H:%M:%S", "%B %d, %Y", "%B %d, %Y %H:%M:%S",
    "%B %d, %Y %I:%M %p", "%B %d, %Y %I:%M:%S %p", "%Y-%m-%d %I:%M:%S %p", "%Y-%m-%d %I:%M %p",
)  # fmt: skip
_ISO = (
    r"^(?P<y>\d{4})(?:[-/.](?P<m>\d\d?)[-/.](?P<d>\d\d?)|(?P<mm>\d\d)(?P<dd>\d\d))"
    r"(?:(?:[Tt]| +)(?P<H>\d\d?)(?::?(?P<M>\d\d)(?::?(?P<S>\d\d)(?:[.,](?P<f>\d+))?)?)?"
    r" ?(?:[Zz]|UTC|GMT|(?P<zs>[-+])(?P<zh>\d\d):?(?P<zm>\d\d)?)?)?$"
)
_CLOCK = r"^(?P<h>\d\d?):(?P<m>\d\d)(?::(?P<s>\d\d)(?:[.,](?P<f>\d+))?)?(?: ?(?P<half>[AaPp])\.?[Mm]\.?)?$"


def times_of(series: pl.Series, data: Data) -> tuple[Micros, Mask]:
    """Microseconds (N,), and which of them are times at all (N,)."""
    series = plain(series)
    if series.dtype.is_temporal():
        micros = _typed(series)
    elif data.time_format:
        text = series if series.dtype == pl.String else series.cast(pl.Int64, strict=False).cast(pl.String)
        micros = _by_format(text.str.strip_chars(), data.time_format)
    elif series.dtype == pl.String:
        micros = _text(series, data)
    else:
        micros = numeric_times(series, data)
    return micros.fill_null(0).to_numpy(), micros.is_not_null().to_numpy()


def _typed(series: pl.Series) -> pl.Series:
    if series.dtype == pl.Date:
        series = series.cast(pl.Datetime("us"))
    if not isinstance(series.dtype, pl.Datetime):
        return _nothing(len(series))
    return series.dt.epoch("us")


def _nothing(count: int) -> pl.Series:
    return pl.repeat(None, count, dtype=pl.Int64, eager=True)


def _by_format(text: pl.Series, pattern: str) -> pl.Series:
    check_format(pattern)
    try:
        return _parse(text, chrono(pattern))
    except pl.exceptions.PolarsError as error:
        raise refused(pattern, str(error).splitlines()[0]) from None


def _parse(text: pl.Series, pattern: str) -> pl.Series:
    """strptime; null where it does not fit. A pattern with only a date is midnight."""
    if "%H" in pattern and "%M" not in pattern:  # polars wants minutes
        text, pattern = text + " 0", f"{pattern} %M"
    return text.str.to_datetime(pattern, time_unit="us", strict=False).dt.epoch("us")


def _text(series: pl.Series, data: Data) -> pl.Series:
    """Each spelling reads what the ones before left; one that reads nothing of the first rows left waits."""
    micros, good = np.zeros(len(series), np.int64), np.zeros(len(series), bool)
    left = np.flatnonzero(series.is_not_null().to_numpy())
    readers, stripped, finished = _readers(data), False, False
    while len(left) and not finished:
        texts = series if len(left) == len(series) else series.gather(left)
        texts = texts.str.strip_chars() if stripped else texts
        probe = texts.head(_PROBE)
        reader = next((r for r in readers if r(probe).is_not_null().any()), None)
        finished = reader is None and stripped
        if reader is not None or finished:
            times = _distinct(texts, readers) if reader is None else reader(texts)
            read = times.is_not_null().to_numpy()
            micros[left[read]], good[left[read]] = times.drop_nulls().to_numpy(), True
            left = left[~read]
        if reader is not None and stripped:
            readers.remove(reader)  # nothing that is left is spelled so
        stripped = True  # few logs have spaces around times; only those pay for stripping
    return pl.select(pl.when(pl.Series(good)).then(pl.Series(micros))).to_series()


def _readers(data: Data) -> list[Reader]:
    return [
        *(partial(_recent, pattern=pattern) for pattern in _COMMON),
        partial(numeric_times, data=data),
        _iso,
        *(partial(_recent, pattern=pattern) for pattern in _NAMED),
    ]


def _recent(text: pl.Series, pattern: str) -> pl.Series:
    micros = _parse(text, pattern)
    return micros.set(micros < _EARLIEST, None)


def _distinct(text: pl.Series, readers: list[Reader]) -> pl.Series:
    """Every reader in turn on each distinct text, then what else ISO 8601 allows."""
    distinct = text.unique()
    micros = _nothing(len(distinct))
    for reader in [*readers, _slow]:
        micros = micros.zip_with(micros.is_not_null(), reader(distinct))
    return text.replace_strict(distinct, micros, return_dtype=pl.Int64)


def _slow(text: pl.Series) -> pl.Series:
    """What ISO 8601 allows besides, one by one: weeks, and the like."""
    return pl.Series([_slow_one(value) for value in text], dtype=pl.Int64)


def _slow_one(value: str) -> int | None:
    try:
        micros = microseconds(value)
    except (ValueError, OverflowError):
        return None
    return None if value.isdigit() or micros < _EARLIEST else micros  # digits are numbers and go by unit


def _iso(text: pl.Series) -> pl.Series:
    """ISO 8601, basic or extended, to the hour, minute or finer; dates may have / or . for -."""
    part = pl.col("x").struct.field
    fields = text.alias("x").str.extract_groups(_ISO).to_frame("x")
    clock = [pl.coalesce(part(name), pl.lit("0")) for name in ("H", "M", "S")]
    day = pl.concat_str(
        [part("y"), pl.coalesce(part("m"), part("mm")), pl.coalesce(part("d"), part("dd"))], separator="-"
    )
    moment = pl.concat_str([day, pl.concat_str(clock, separator=":")], separator=" ")
    minutes = part("zh").cast(pl.Int64) * 60 + part("zm").cast(pl.Int64).fill_null(0)
    offset = pl.when(part("zs") == "-").then(-minutes).otherwise(minutes).fill_null(0) * 60_000_000
    digits = text.str.contains(r"^\d+$")  # a number
    frame = fields.select(
        pl.when(~pl.lit(digits)).then(moment).alias("moment"),
        offset.alias("offset"),
        _fraction(part("f")).alias("fraction"),
    )
    return _recent(frame["moment"], _COMMON[0]) + frame["fraction"] - frame["offset"]


def _fraction(digits: pl.Expr) -> pl.Expr:
    """Digits behind the point of a second as microseconds; 0 where there are none."""
    return digits.str.slice(0, 6).str.pad_end(6, "0").cast(pl.Int64).fill_null(0)


def order_of(series: pl.Series, data: Data) -> tuple[npt.NDArray[np.generic], Mask, Micros]:
    """What orders events within their time: numbers, times, or times of day.

    Returns:
        Keys (N,), int64 where all are whole and else float64; which of them say something (N,); and the
        time since midnight (N,) where a time of day is written, else 0.
    """
    series = plain(series)
    if series.dtype == pl.Time:
        since_midnight = series.cast(pl.Int64) // 1000
    elif series.dtype == pl.String:
        since_midnight = _clock(series)
    else:
        since_midnight = _nothing(len(series))
    added = since_midnight.fill_null(0).to_numpy()
    if series.dtype.is_temporal() and not isinstance(series.dtype, pl.Duration):
        keys = since_midnight.zip_with(since_midnight.is_not_null(), _typed(series))
    else:
        numbers = series.cast(pl.Int64) if isinstance(series.dtype, pl.Duration) else series
        whole, floats = numbers.cast(pl.Int64, strict=False), number_of(numbers, data.decimal)
        rest = floats.is_null() & since_midnight.is_null() & numbers.is_not_null()
        written, good = times_of(numbers.filter(rest), data) if rest.any() else (added[:0], added[:0] > 0)
        times = pl.Series(np.where(good, written, 0)).set(pl.Series(~good), None)
        since_midnight = since_midnight.scatter(rest.arg_true(), times)
        exact = ((floats == floats.round()) | floats.is_null()).all() and (
            whole.is_null() == floats.is_null()
        ).all()
        keys = (
            (whole if exact else floats)
            .to_frame("k")
            .select(pl.coalesce("k", pl.lit(since_midnight)))
            .to_series()
        )
    return keys.fill_null(0).to_numpy(), keys.is_not_null().to_numpy(), added


def _clock(text: pl.Series) -> pl.Series:
    """Microseconds since midnight of times of day like 17:15, 5:15 pm or 17:15:30.5; null where none is."""
    fields = text.str.strip_chars().str.extract_groups(_CLOCK).struct.unnest()
    number = {name: pl.col(name).cast(pl.Int64) for name in "hms"}
    half = pl.col("half").str.to_lowercase()
    hour = (
        pl.when(half.is_null())
        .then(number["h"])
        .otherwise(number["h"] % 12 + pl.when(half == "p").then(12).otherwise(0))
    )
    seconds = (hour * 60 + number["m"]) * 60 + number["s"].fill_null(0)
    valid = (hour < 24) & (number["m"] < 60) & ~((half.is_not_null()) & (number["h"] > 12))
    return fields.select(pl.when(valid).then(seconds * 1_000_000 + _fraction(pl.col("f")))).to_series()
