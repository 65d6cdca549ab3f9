"""The row filter's language."""

from __future__ import annotations

import math

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.data.values.row_filter import parse
from app.errors import RecipeError

FRAME = pl.DataFrame(
    {
        "code": ["C1", "D2", "C3", " ", None],
        "amount": ["1", "2.5", "x", None, "-3"],
        "price": [1.0, math.nan, 3.0, 4.5, None],
        "unit price": [2, 2, 2, 2, 2],
    }
)


def kept(text: str) -> list[int]:
    return [n for n, keep in enumerate(parse(text, tuple(FRAME.columns)).keep(FRAME)) if keep]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("amount > 0", [0, 1]),
        ("amount = 2.5", [1]),
        ("amount >= -3 and amount != 1", [1, 4]),
        ("code like 'C%'", [0, 2]),
        ("code like '_2'", [1]),
        ("not code like 'C%'", [1, 3]),
        ("code not like 'C%'", [1, 3]),
        ("code in ['C1', 'D2']", [0, 1]),
        ("amount in [1, 2.5]", [0, 1]),
        ("code not in ['C1']", [1, 2, 3]),
        ("code is null", [3, 4]),
        ("price is not null", [0, 2, 3]),
        ("`unit price` = 2", [0, 1, 2, 3, 4]),
        ("price < `unit price`", [0]),
        ("code = 'C1' or code = 'D2' and amount = 1", [0]),
        ("(code = 'C1' or code = 'D2') and amount > 2", [1]),
        ("NOT (price > 1 AND price < 4)", [0, 3]),
        ("code == 'C1'", [0]),
        ("code <> 'C1'", [1, 2, 3]),
    ],
)
def test_rows_kept(text: str, rows: list[int]) -> None:
    assert kept(text) == rows


def test_text_may_hold_a_quote() -> None:
    frame = pl.DataFrame({"name": ["it's", "its"]})
    assert parse("name = 'it''s'", ("name",)).keep(frame).to_list() == [True, False]


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("amount >", 9, "expected a number"),
        ("mount > 1", 1, "did you mean 'amount'"),
        ("amount = 1 and", 15, "expected a column"),
        ("amount # 3", 8, "cannot read"),
        ("(amount = 1", 12, "expected `)`"),
        ("amount = 1 code = 2", 12, "expected `and`"),
        ("amount in []", 12, "expected a number or 'text'"),
        ("amount is 3", 11, "expected `null`"),
    ],
)
def test_errors_name_position_and_columns(text: str, position: int, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(text, tuple(FRAME.columns))
    assert f"position {position} " in caught.value.what
    assert message in str(caught.value)
    assert "unit price" in caught.value.remedy


@given(st.text(max_size=30))
def test_any_text_parses_or_is_refused_as_a_recipe_error(text: str) -> None:
    try:
        parse(text, ("a",))
    except RecipeError as error:
        assert error.where == "data.where"


@given(st.floats(-1e6, 1e6), st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=10))
def test_numbers_compare_as_numbers_even_from_text(bound: float, values: list[float]) -> None:
    frame = pl.DataFrame({"x": [repr(v) for v in values]})
    assert parse(f"x < {bound!r}", ("x",)).keep(frame).to_list() == [v < bound for v in values]
