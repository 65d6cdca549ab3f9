"""What cells mean, by the type of their column: exact numbers, dictionaries, lists, decimal commas."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from app.data.values.latest import merge_latest, time_of
from app.data.values.row_filter import parse
from app.data.values.text import as_text, encode, lists_of, number_of, text_of
from app.errors import RecipeError
from app.features.expression import ParseError, quoted
from app.features.expression import parse as parse_condition

LARGE = 2**53  # the next whole number is no float


def cells(column: pl.Series) -> list[str | None]:
    frame = column.to_frame("x")
    return frame.select(as_text("x", frame.schema)).to_series().to_list()


def kept(values: pl.Series | list[Any], text: str) -> list[int]:
    frame = pl.DataFrame({"x": values})
    return [n for n, keep in enumerate(parse(text).keep(frame)) if keep]


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (pl.Series([Decimal(LARGE), Decimal(LARGE + 1)]), [str(LARGE), str(LARGE + 1)]),
        (pl.Series([Decimal("17850.00"), Decimal("0.10"), Decimal("-5.05")]), ["17850", "0.1", "-5.05"]),
        (pl.Series([17850.0, 2.5, float("inf"), float("nan")]), ["17850", "2.5", None, None]),
        (pl.Series(["250", "250.0", "250.00"]), ["250", "250.0", "250.00"]),
        (pl.Series(["b", None, "a"], dtype=pl.Categorical), ["b", None, "a"]),
        (pl.Series(["b", "a"], dtype=pl.Enum(["a", "b"])), ["b", "a"]),
        (pl.Series([b"b", b"a"]), ["b", "a"]),
        (pl.Series([[1.0, 2.5], [], None]), ["1|2.5", "", None]),
        (pl.Series([2**64 - 1], dtype=pl.UInt64), [str(2**64 - 1)]),
    ],
)
def test_text_of_each_type(column: pl.Series, texts: list[str | None]) -> None:
    assert cells(column) == texts


@pytest.mark.parametrize(
    "ids",
    [
        pl.Series([Decimal(LARGE), Decimal(LARGE + 1), None]),
        pl.Series([LARGE, LARGE + 1, None]),
        pl.Series([str(LARGE), str(LARGE + 1), "NA"]),
        pl.Series([str(LARGE), str(LARGE + 1), None], dtype=pl.Categorical),
        pl.Series(pl.from_arrow(pa.array([LARGE, LARGE + 1, None]).dictionary_encode())),
    ],
)
def test_ids_are_exact_in_each_type(ids: pl.Series) -> None:
    codes, texts = encode(ids)
    assert [None if code < 0 else texts[int(code)] for code in codes] == [str(LARGE), str(LARGE + 1), None]


def test_lists_of_ids_go_by_the_type_of_their_elements() -> None:
    assert lists_of(pl.Series([[17850.0, 2.5]])).to_list() == [["17850", "2.5"]]
    assert lists_of(pl.Series(["250.0 250|7"])).to_list() == [["250.0", "250", "7"]]


@pytest.mark.parametrize(
    "values",
    [
        pl.Series([LARGE, LARGE + 1, LARGE + 2]),
        pl.Series([LARGE, LARGE + 1, LARGE + 2], dtype=pl.UInt64),
        pl.Series([Decimal(LARGE), Decimal(LARGE + 1), Decimal(LARGE + 2)]),
        pl.Series([str(LARGE), f" {LARGE + 1} ", str(LARGE + 2)]),
        pl.Series([str(LARGE), str(LARGE + 1), str(LARGE + 2)], dtype=pl.Categorical),
    ],
)
def test_whole_numbers_compare_exactly(values: pl.Series) -> None:
    assert kept(values, f"x = {LARGE + 1}") == [1]
    assert kept(values, f"x in [{LARGE + 1}, 5]") == [1]
    assert kept(values, f"x not in [{LARGE + 1}]") == [0, 2]
    assert kept(values, f"x > {LARGE + 1}") == [2]
    assert kept(values, f"x <= {LARGE}.5") == [0]
    assert kept(values, f"x != {LARGE}") == [1, 2]


def test_decimals_and_mixed_numbers_compare_exactly() -> None:
    close = pl.Series([Decimal("0.1"), Decimal("0.10000000000000000001")])
    assert kept(close, "x = 0.1") == [0]
    assert kept(close, "x > 0.1") == [1]
    assert kept(close, "x = 0.10000000000000000001") == [1]
    assert kept(["1.5", "2", "x", None, "1e3"], "x > 1") == [0, 1, 4]
    assert kept([1, 2, 3], "x = 1.5 or x >= 2.5") == [2]
    assert kept(["1", "2"], f"x < {'9' * 60}") == [0, 1]
    frame = pl.DataFrame({"a": [str(LARGE), str(LARGE + 1), "1.5"], "b": [LARGE + 1, LARGE + 1, 1]})
    assert parse("a = b").keep(frame).to_list() == [False, True, False]
    assert parse("a > b").keep(frame).to_list() == [False, False, True]


def test_numbers_of_a_condition_are_what_is_written() -> None:
    for text, number in [("5", 5.0), ("0.1", 0.1), (str(LARGE + 1), LARGE + 1), ("1e400", float("inf"))]:
        assert parse_condition(f"x = {text}").value == number  # type: ignore[union-attr]
    assert parse_condition("x = 0.10000000000000000001").value == Decimal("0.10000000000000000001")  # type: ignore[union-attr]


def test_missing_words_are_null_and_dictionaries_are_texts_in_a_filter() -> None:
    column = pl.Series(["NA", "a", " ", None, "b"], dtype=pl.Categorical)
    assert kept(column, "x is null") == [0, 2, 3]
    assert kept(column, "x = 'b' or x like 'a%'") == [1, 4]
    assert kept(column, "x in ['a', 'c']") == [1]
    assert parse("x is null", None, ".", ["b"]).keep(pl.DataFrame({"x": column})).sum() == 3


def test_decimal_commas() -> None:
    texts = pl.Series(["12,50", " 1.234,5", "1.234", "4.5", "x", None, ",5", "-3", "NA"])
    assert number_of(texts, ",").to_list() == [12.5, 1234.5, 1234.0, None, None, None, 0.5, -3.0, None]
    assert number_of(texts).to_list() == [None, None, 1.234, 4.5, None, None, None, -3.0, None]
    assert kept(["12,50", "9,5"], "x > 10") == []
    assert parse("x > 10", decimal=",").keep(pl.DataFrame({"x": ["12,50", "9,5"]})).to_list() == [True, False]
    assert text_of(pl.Series([" a ", "NA", ""]), ["NA"]).to_list() == ["a", None, None]


def test_columns_with_blanks_are_written_in_backticks() -> None:
    assert [quoted(name) for name in ("price", "unit price", "like", "3d")] == [
        "price",
        "`unit price`",
        "`like`",
        "`3d`",
    ]
    assert kept([1, 2], "x = 2") == [1]
    assert parse("`unit price` > 1").keep(pl.DataFrame({"unit price": [1, 2]})).to_list() == [False, True]
    with pytest.raises(ParseError, match="did you mean `unit price`"):
        parse_condition("unit price > 1", ["item", "unit price"])
    with pytest.raises(RecipeError) as error:
        parse("unit price > 1", ["item", "unit price"])
    assert "the columns are item, `unit price`" in error.value.remedy


def test_the_latest_of_several_values_holds_and_of_equal_times_the_later_row() -> None:
    frame = pl.DataFrame(
        {"id": list("aabba"), "c": ["new", "old", "first", "second", None], time_of("c"): [9, 1, 5, 5, 99]}
    )
    merged = merge_latest(frame, "id", ["c", "absent"])
    assert merged.select("id", "c").rows() == [("a", "new"), ("b", "second")]
