"""Filters of requests over indexed columns: what they keep, and what they refuse."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.bundle.export.item_columns import write_columns
from app.bundle.format.item_columns import BYTES_A_STEP, Columns, Numbers, Texts
from app.bundle.retrieval.item_filter import CONDITIONS, Filters
from app.data.dataset import Dataset
from app.data.values.row_filter import parse as parse_where
from app.errors import ArtifactError, RecipeError, RequestError
from app.features.expression import Like
from app.recipe import Recipe, parse
from tests.bundles import describe_items
from tests.tiny import tiny_dataset

ITEMS = 8
VALUES: dict[str, list[Any]] = {
    "price": [None, 1.5, 20, 3, None, 20, -1, 3, 1e9],
    "was": [None, "2", "10", " 4 ", "5", None, "-1", "1", "7"],
    "category": [None, "shoes", "hats", "shoes", "", "bags", "shoes", None, "hats"],
    "size of it": [None, "A1", "B2", "a", "Ä", "A2", "B", "C", "A1"],
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = tiny_dataset(tmp_path_factory.mktemp("filter") / "dataset", users=20, items=ITEMS, events=80)
    describe_items(dataset, **VALUES)
    return dataset


@pytest.fixture(scope="module")
def columns(dataset: Dataset) -> Columns:
    write_columns(Recipe(), dataset, dataset.popularity, dataset.path / "written")
    return Columns.open(dataset.path / "written", ITEMS + 1)


@pytest.fixture(scope="module")
def filters(columns: Columns) -> Filters:
    return Filters(columns)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("price < 20", [1, 3, 6, 7]),
        ("price = 20", [2, 5]),
        ("not price = 20", [1, 3, 6, 7, 8]),
        ("price is null", [4]),
        ("price > 1e8 or price < 0", [6, 8]),
        ("price in [3, 1.5, 4]", [1, 3, 7]),
        ("category = 'shoes'", [1, 3, 6]),
        ("category in ['hats', 'bags', 'none']", [2, 5, 8]),
        ("category not in ['hats']", [1, 3, 5, 6]),
        ("category >= 'hats'", [1, 2, 3, 6, 8]),
        ("category is null", [4, 7]),
        ("`size of it` like 'A%'", [1, 5, 8]),
        ("`size of it` like '_'", [3, 4, 6, 7]),
        ("not `size of it` like '%1'", [2, 3, 4, 5, 6, 7]),
        ("price < was", [1, 3]),
        ("not price < was", [2, 6, 7, 8]),
        ("price < 20 and category = 'shoes'", [1, 3, 6]),
        ("not (price < 20 or category = 'shoes')", [2, 5, 8]),
        ("not (price < 20 and category = 'shoes')", [2, 5, 8]),
    ],
)
def test_items_kept(filters: Filters, text: str, rows: list[int]) -> None:
    match = filters.match(text)
    assert match.rows.tolist() == rows
    assert match.count == len(rows) and not match.mask[0]


numbers = st.sampled_from(["-1", "1.5", "3", "20", "1e9", "7"])
words = st.sampled_from(["'shoes'", "'hats'", "'A1'", "''", "'zebra'"])
signs = st.sampled_from(["=", "!=", "<", "<=", ">", ">="])
leaves = st.one_of(
    st.builds("{} {} {}".format, st.sampled_from(["price", "was"]), signs, numbers),
    st.builds("{} {} {}".format, st.sampled_from(["category", "`size of it`"]), signs, words),
    st.builds("category in [{}, {}]".format, words, words),
    st.builds("was not in [{}]".format, numbers),
    st.builds("`size of it` like '{}'".format, st.sampled_from(["A%", "%", "_", "%2", "B"])),
    st.builds("{} is null".format, st.sampled_from(["price", "category"])),
    st.builds("price {} was".format, signs),
)
conditions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds("not ({})".format, inner),
        st.builds("({}) and {}".format, inner, inner),
        st.builds("{} or ({})".format, inner, inner),
    ),
    max_leaves=5,
)


@settings(deadline=None)
@given(text=conditions)
def test_they_keep_what_a_recipes_filter_keeps(filters: Filters, text: str) -> None:
    frame = pl.DataFrame(VALUES, strict=False).with_columns(
        pl.col("category").replace("", None)  # prepared attributes have no empty text
    )
    kept = parse_where(text, tuple(VALUES)).keep(frame)[1:]
    assert filters.match(text).rows.tolist() == [row for row, keep in enumerate(kept, 1) if keep]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour = 'red'", "price, was, category"),
        ("price <", "position 8"),
        ("price = 'cheap'", "numbers"),
        ("category < 3", "quote the values"),
        ("price like '2%'", "numbers"),
        ("price < category", "two columns of numbers"),
        (" or ".join(["price = 1"] * (CONDITIONS + 1)), f"at most {CONDITIONS}"),
        ("((((", "position"),
    ],
)
def test_what_cannot_hold_is_refused_without_its_words(filters: Filters, text: str, message: str) -> None:
    with pytest.raises(RequestError) as error:
        filters.check(text, "boost[0].filter")
    assert message in str(error.value) and error.value.where == "boost[0].filter"
    assert len(str(error.value)) < 250 and "red" not in str(error.value) and "cheap" not in str(error.value)


def test_patterns_over_too_many_texts_are_refused(filters: Filters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.bundle.retrieval.item_filter.PATTERN_STEPS", 14)
    filters.check("`size of it` like '%1'", "filter")
    with pytest.raises(RequestError, match=r"let each pattern start with letters.*fewer %"):
        filters.check("`size of it` like '%1' or `size of it` like '%2'", "filter")
    with pytest.raises(RequestError, match="too many texts"):
        filters.check("`size of it` like '%1%1%1'", "filter")
    filters.check("`size of it` like '%%%%%%1'", "filter")
    filters.check("`size of it` like 'A%' or `size of it` like 'A%'", "filter")


def test_the_work_of_a_pattern_is_known_before_it_starts() -> None:
    texts = Texts.from_values([f"{n:05d}{'x' * 95}" for n in range(1000)])
    assert texts.steps_like(Like("c", "%")) == 1000 * 2 + 1000 * 100 // BYTES_A_STEP
    assert texts.steps_like(Like("c", "%" * 1900 + "y")) == texts.steps_like(Like("c", "%y"))
    assert texts.steps_like(Like("c", "0000%a%b")) == 10 * 3 + 10 * 100 // BYTES_A_STEP
    assert texts.steps_like(Like("c", "9%")) == 0


def test_matches_are_remembered_but_not_without_end(
    columns: Columns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.bundle.retrieval.item_filter.MATCH_BYTES", 3 * (ITEMS + 101))
    filters = Filters(columns)
    cached = filters.match("price > 0")
    assert filters.match("price > 0") is cached
    for bound in range(1, 4):
        filters.match(f"price > {bound}")
    again = filters.match("price > 0")
    assert again is not cached and again.rows.tolist() == cached.rows.tolist()


def test_the_values_decide_the_kind(columns: Columns) -> None:
    kinds = {name: type(columns[name]) for name in columns.names}
    assert kinds == {"price": Numbers, "was": Numbers, "category": Texts, "size of it": Texts}


def test_columns_are_indexed_by_popularity_among_equals(columns: Columns, dataset: Dataset) -> None:
    shoes = columns.texts("category", "caps")
    start, stop = shoes.span(int(shoes.codes[1]))
    rows = shoes.rows[start:stop].tolist()
    assert sorted(rows) == [1, 3, 6]
    assert rows == sorted(rows, key=lambda row: (-dataset.popularity[row], row))


def test_caps_need_a_column_of_texts(columns: Columns) -> None:
    for name in ("price", "colour"):
        with pytest.raises(RequestError, match="category, size of it"):
            columns.texts(name, "caps")


def test_long_texts_are_left_out_unless_the_recipe_names_them(dataset: Dataset, tmp_path: Path) -> None:
    describe_items(dataset, blurb=[None, *(f"{row} " * 60 for row in range(ITEMS))], **VALUES)
    try:
        write_columns(Recipe(), dataset, dataset.popularity, tmp_path / "default")
        assert "blurb" not in Columns.open(tmp_path / "default", ITEMS + 1).names
        recipe = parse({"export": {"columns": ["blurb"]}}, "test")
        write_columns(recipe, dataset, dataset.popularity, tmp_path / "chosen")
        assert Columns.open(tmp_path / "chosen", ITEMS + 1).names == ["blurb"]
    finally:
        describe_items(dataset, **VALUES)
    with pytest.raises(RecipeError, match="the items have price"):
        write_columns(recipe, dataset, dataset.popularity, tmp_path / "absent")


def test_the_first_category_feature_makes_segments(dataset: Dataset, tmp_path: Path) -> None:
    features = [{"column": "price"}, {"kind": "category", "column": "category"}]
    recipe = parse({"features": {"item": features}}, "test")
    assert write_columns(recipe, dataset, dataset.popularity, tmp_path / "a") == "category"
    assert write_columns(Recipe(), dataset, dataset.popularity, tmp_path / "b") == ""


@pytest.mark.parametrize("name", ["0/rows.npy", "0/values.npy", "2/codes.npy", "2/starts.npy"])
def test_arrays_that_do_not_fit_together_are_refused(dataset: Dataset, tmp_path: Path, name: str) -> None:
    write_columns(Recipe(), dataset, dataset.popularity, tmp_path / "columns")
    file = tmp_path / "columns" / name
    np.save(file, np.load(file)[:-1])
    with pytest.raises(ArtifactError, match="do not fit"):
        Columns.open(tmp_path / "columns", ITEMS + 1)


def test_a_bundle_without_columns_says_so(tmp_path: Path) -> None:
    filters = Filters(Columns.open(tmp_path / "none", ITEMS + 1))
    with pytest.raises(RequestError, match="no columns"):
        filters.check("price < 3", "filter")


def test_bounds_beyond_all_numbers(filters: Filters) -> None:
    assert filters.match("price < 1e999").count == ITEMS - 1
    assert filters.match("price > 1e999").count == 0
    assert math.isinf(float("1e999"))


def test_numbers_that_no_float_holds_compare_exactly() -> None:
    column = Numbers.from_values([2.0**53, 2.0**53 + 2, 0.1])
    spans = {sign: column.spans(sign, 2**53 + 1) for sign in ("=", "<", ">")}
    assert spans == {"=": [], "<": [(0, 2)], ">": [(2, 3)]}
    assert column.spans("<=", Decimal("0.1000000000000000000001")) == [(0, 1)]
    assert column.spans("=", Decimal("0.1000000000000000000001")) == []


def test_codes_beyond_what_a_float_holds_are_texts(dataset: Dataset, tmp_path: Path) -> None:
    describe_items(dataset, **VALUES, code=[str(2**53 + n) for n in range(ITEMS + 1)])
    write_columns(Recipe(), dataset, dataset.popularity, tmp_path / "written")
    describe_items(dataset, **VALUES)
    filters = Filters(Columns.open(tmp_path / "written", ITEMS + 1))
    assert filters.match(f"code = '{2**53 + 1}'").rows.tolist() == [1]
