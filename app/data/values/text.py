"""Columns of any type as text or as numbers, the same whatever file they came from.

The type of a column decides what its cells mean. A float or a decimal is a number: 17850.0 is the text
"17850". Text is text: "250" and "250.0" are two ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from app.recipe.data import MISSING_WORDS

Array = npt.NDArray[np.generic]
_DECIMAL_ZEROS = r"\.0+$|(\.\d*[1-9])0+$"
_LIST = r'[^\s,;|\[\]"\']+'
_COMMA_NUMBER = r"^\s*[-+]?(\d{1,3}(\.\d{3})+|\d+)(,\d*)?([eE][-+]?\d+)?\s*$|^\s*[-+]?,\d+\s*$"


def frame_of_arrow(table: pa.Table | pa.RecordBatch) -> pl.DataFrame:
    """A table as a frame; decimals of more than 38 digits, which polars has no type for, as text."""
    wide = {i: f for i, f in enumerate(table.schema) if pa.types.is_decimal256(f.type)}
    for i, field in wide.items():
        table = table.set_column(i, field.name, table.column(i).cast(pa.string()))
    frame = pl.DataFrame(pl.from_arrow(table))
    return frame.with_columns(
        pl.col(f.name).str.replace(_DECIMAL_ZEROS, "$1") for f in wide.values() if f.type.scale
    )


def as_text(column: str, schema: pl.Schema) -> pl.Expr:
    """The column as text: numbers in their shortest form, lists joined by `|`; NaN and infinity are null."""
    return _text(pl.col(column), schema[column])


def _text(it: pl.Expr, kind: pl.DataType) -> pl.Expr:
    if kind == pl.String:
        return it
    if kind.is_decimal():
        return it.cast(pl.String).str.replace(_DECIMAL_ZEROS, "$1")
    if kind.is_float():
        whole = (it == it.round()) & (it.abs() < 2**63)
        text = (
            pl.when(whole).then(it.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(it.cast(pl.String))
        )
        return pl.when(it.is_finite()).then(text)
    if isinstance(kind, pl.List | pl.Array):
        texts = _texts(it, kind)
        if kind.inner.is_float():
            # A vector keeps its width: what is missing or not finite in it stays, as "NaN".
            texts = texts.list.eval(pl.element().fill_null("NaN"))
        return texts.list.join("|")
    if isinstance(kind, pl.Struct):
        return it.struct.json_encode()
    return it.cast(pl.String, strict=False)


def _texts(it: pl.Expr, kind: pl.List | pl.Array) -> pl.Expr:
    """A column of lists as lists of texts."""
    it = it.arr.to_list() if isinstance(kind, pl.Array) else it
    return it.list.eval(_text(pl.element(), kind.inner))  # type: ignore[arg-type]


def as_number(column: str, schema: pl.Schema) -> pl.Expr:
    """The column as float64; null where it is missing, no number, NaN or infinite."""
    kind = schema[column]
    it = pl.col(column)
    if _spelled(kind):
        it = it.cast(pl.String, strict=False).str.strip_chars()
    if kind.is_nested() or kind.is_temporal():
        return pl.lit(None, pl.Float64)
    number = it.cast(pl.Float64, strict=False)
    return pl.when(number.is_finite()).then(number)


def _spelled(kind: pl.DataType) -> bool:
    """Whether cells of this type are texts, in whatever form they are stored."""
    return isinstance(kind, pl.String | pl.Categorical | pl.Enum | pl.Binary)


def plain(series: pl.Series) -> pl.Series:
    """Texts that are stored as a dictionary or as bytes as texts; any other series as it is."""
    spelled = _spelled(series.dtype) and series.dtype != pl.String
    return series.cast(pl.String, strict=False) if spelled else series


def number_of(series: pl.Series, decimal: str = ".") -> pl.Series:
    """A series as float64, as `as_number`; `decimal` stands before the decimals of numbers in text."""
    series = plain(series)
    if series.dtype == pl.String:  # stripping costs as much as parsing: only where it is needed
        series = point(series) if decimal == "," else series
        numbers = series.cast(pl.Float64, strict=False)
        if numbers.null_count() > series.null_count():
            again = series.filter(numbers.is_null()).str.strip_chars().cast(pl.Float64, strict=False)
            numbers = numbers.scatter(numbers.is_null().arg_true(), again)
        series = numbers
    frame = series.to_frame("x")
    return frame.select(as_number("x", frame.schema)).to_series()


def point(texts: pl.Series) -> pl.Series:
    """Numbers that are written with a decimal comma, as "1.234,5", with a point; null where no number is."""
    number = pl.col(texts.name)
    spelled = number.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
    return texts.to_frame().select(pl.when(number.str.contains(_COMMA_NUMBER)).then(spelled)).to_series()


def blank(series: pl.Series, words: Sequence[str] = MISSING_WORDS) -> pl.Series:
    """(N,) bool: missing, a word that means so, or nothing but whitespace (or NaN)."""
    return text_of(series, words).is_null()


def text_of(series: pl.Series, words: Sequence[str] = ()) -> pl.Series:
    """A series as text, as `as_text`, without whitespace around it; null: nothing left, or one of `words`."""
    frame = series.to_frame("x")
    text = frame.select(as_text("x", frame.schema).str.strip_chars()).to_series()
    kept = pl.when((text != "") & ~text.is_in(list(words))) if words else pl.when(text != "")
    return pl.select(kept.then(text)).to_series().alias(series.name)


def normal_ids(series: pl.Series, words: Sequence[str] = MISSING_WORDS) -> pl.Series:
    """Ids as text, null where missing or one of the `words` that mean so."""
    return text_of(series, words)


def encode(
    series: pl.Series, words: Sequence[str] = MISSING_WORDS
) -> tuple[npt.NDArray[np.int64], pl.Series]:
    """Ids as positions (N,), -1 where missing, in the texts of the distinct values.

    Two positions may hold one text, where ids were spelled differently.
    """
    series = plain(series)
    if series.dtype.is_float() or series.dtype.is_nested() or series.dtype == pl.Boolean:
        series = text_of(series)
    array = series.to_arrow()
    chunks = array if isinstance(array, pa.Array) else array.combine_chunks()
    coded = chunks.dictionary_encode()
    texts = normal_ids(pl.Series(pl.from_arrow(coded.dictionary)), words)
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    missing = np.append(texts.is_null().to_numpy(), True)  # -1 picks the last
    return np.where(missing[codes], -1, codes), texts.fill_null("")


def lists_of(series: pl.Series) -> pl.Series:
    """A column of lists as lists of texts; text like "1 2 3", "1|2" or "[1, 2]" is split."""
    if isinstance(series.dtype, pl.List | pl.Array):
        return series.to_frame("x").select(_texts(pl.col("x"), series.dtype)).to_series()
    return text_of(series).str.extract_all(_LIST)


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
