"""Columns of any type as text or as numbers, the same whatever file they came from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

Array = npt.NDArray[np.generic]
_WHOLE_FLOAT = r"^(-?\d+)\.0+$"
_LIST = r'[^\s,;|\[\]"\']+'


def as_text(column: str, schema: pl.Schema) -> pl.Expr:
    """The column as text: whole floats as integers, lists joined by `|`, NaN as null."""
    kind, it = schema[column], pl.col(column)
    if kind == pl.String:
        return it
    if kind.is_decimal():
        kind, it = pl.Float64(), it.cast(pl.Float64)
    if kind.is_float():
        whole = (it == it.round()) & (it.abs() < 2**63)
        text = (
            pl.when(whole).then(it.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(it.cast(pl.String))
        )
        return pl.when(it.is_not_nan()).then(text)
    if isinstance(kind, pl.List | pl.Array):
        return it.cast(pl.List(pl.String)).list.join("|")
    if isinstance(kind, pl.Struct):
        return it.struct.json_encode()
    return it.cast(pl.String, strict=False)


def as_number(column: str, schema: pl.Schema) -> pl.Expr:
    """The column as float64; null where it is missing, no number, NaN or infinite."""
    kind = schema[column]
    it = pl.col(column)
    it = it.str.strip_chars() if kind == pl.String else it
    if isinstance(kind, pl.List | pl.Array | pl.Struct) or kind.is_temporal():
        return pl.lit(None, pl.Float64)
    number = it.cast(pl.Float64, strict=False)
    return pl.when(number.is_finite()).then(number)


def number_of(series: pl.Series) -> pl.Series:
    """A series as float64, as `as_number`."""
    if series.dtype == pl.String:  # stripping costs as much as parsing: only where it is needed
        plain = series.cast(pl.Float64, strict=False)
        if plain.null_count() > series.null_count():
            again = series.filter(plain.is_null()).str.strip_chars().cast(pl.Float64, strict=False)
            plain = plain.scatter(plain.is_null().arg_true(), again)
        series = plain
    frame = series.to_frame("x")
    return frame.select(as_number("x", frame.schema)).to_series()


def blank(series: pl.Series) -> pl.Series:
    """(N,) bool: missing, or nothing but whitespace (or NaN)."""
    return text_of(series).is_null()


def text_of(series: pl.Series) -> pl.Series:
    """A series as text, as `as_text`; whitespace around it removed, nothing left is null."""
    frame = series.to_frame("x")
    text = frame.select(as_text("x", frame.schema).str.strip_chars()).to_series()
    return pl.select(pl.when(text != "").then(text)).to_series().alias(series.name)


def normal_ids(text: pl.Series) -> pl.Series:
    """Ids as text: "17850.0", a float's way to write an id, is "17850"; "nan" is null."""
    text = text_of(text).str.replace(_WHOLE_FLOAT, "$1")
    return pl.select(pl.when(text.is_in(["nan", "NaN"]).not_()).then(text)).to_series()


def encode(series: pl.Series) -> tuple[npt.NDArray[np.int64], pl.Series]:
    """Ids as positions (N,), -1 where missing, in the texts of the distinct values.

    Two positions may hold one text, where ids were spelled differently.
    """
    if isinstance(series.dtype, pl.Float32 | pl.Float64) or series.dtype.is_nested():
        series = text_of(series)
    array = series.to_arrow()
    chunks = array if isinstance(array, pa.Array) else array.combine_chunks()
    coded = chunks.dictionary_encode()
    texts = normal_ids(pl.Series(pl.from_arrow(coded.dictionary)))
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    missing = np.append(texts.is_null().to_numpy(), True)  # -1 picks the last
    return np.where(missing[codes], -1, codes), texts.fill_null("")


def lists_of(series: pl.Series) -> pl.Series:
    """A column of lists as lists of texts; text like "1 2 3", "1|2" or "[1, 2]" is split."""
    if isinstance(series.dtype, pl.List | pl.Array):
        inner = series.cast(pl.List(pl.String))
        return inner.list.eval(pl.element().str.replace(_WHOLE_FLOAT, "$1"))
    texts = text_of(series).str.extract_all(_LIST)
    return texts.list.eval(pl.element().str.replace(_WHOLE_FLOAT, "$1"))


def stable_hash(texts: pl.Series) -> npt.NDArray[np.uint64]:
    """(N,) hashes of texts, the same on every machine and with every library version.

    A polynomial over the UTF-8 bytes, mixed by the finaliser of splitmix64 (Steele 2014).
    """
    array = texts.to_arrow().cast(pa.large_string())
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    lengths = np.diff(offsets)
    data = np.frombuffer(array.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]].astype(np.uint64)
    position = np.arange(len(data)) - np.repeat(offsets[:-1] - offsets[0], lengths)
    powers = np.full(int(lengths.max(initial=0)) + 1, 0x9E3779B97F4A7C15, np.uint64).cumprod()
    sums = np.concatenate([[np.uint64(0)], np.cumsum((data + 1) * powers[position])])
    ends = (offsets - offsets[0])[1:]
    return mix(sums[ends] - sums[ends - lengths] + lengths.astype(np.uint64))


def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64: nearby numbers in, unrelated numbers out."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
