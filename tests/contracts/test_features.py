"""What every kind of feature promises: one definition, equal bit for bit in batch and per request."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import ArtifactError, RecipeError
from app.features import kinds
from app.features.base import Feature
from app.features.columns import FittedColumns, fit_columns
from app.recipe import Recipe, parse
from app.recipe_toml import load, to_toml

SPECS: dict[str, dict[str, Any]] = {
    **{f"{kind}-defaults": {"kind": kind} for kind in kinds.kind_names()},
    **{
        f"number-{normalise}-{missing}": {
            "kind": "number",
            "normalise": normalise,
            "missing": missing,
            "fill": 7.5,
        }
        for normalise in ("none", "standard", "minmax", "log", "quantile")
        for missing in ("median", "constant", "category")
    },
    "category": {"kind": "category", "vocabulary": 3},
    "category-list": {"kind": "category", "separator": "|"},
    "category-hash": {"kind": "category", "buckets": 5},
    "text-count": {"kind": "text", "buckets": 16, "weighting": "count"},
    "text-tfidf": {"kind": "text", "buckets": 16, "ngrams": 2},
    "text-vocabulary": {"kind": "text", "vocabulary": 3, "ngrams": 2},
    "text-vocabulary-count": {"kind": "text", "vocabulary": 3, "weighting": "count"},
}
MIXED = [
    None,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    " ",
    0,
    -0.0,
    5,
    5.0,
    "5",
    True,
    1e300,
    -1e-300,
    10**400,
    "red",
    "red|blue",
    "a b a",
    "é",
    "\ud800",
    b"raw",
    np.float32(2.5),
    np.int64(3),
    ["red", "x"],
    [],
]
CELLS = st.one_of(
    st.sampled_from(MIXED),
    st.floats(),
    st.integers(-1000, 1000),
    st.text(max_size=12),
    st.sampled_from(["red", "green", "blue", "red|green", "two words"]),
)

each_kind = pytest.mark.parametrize("name", SPECS)


def features(*entries: dict[str, Any]) -> list[Feature]:
    return parse({"features": {"item": list(entries)}}, "test").features.item


def spec(name: str) -> Feature:
    (feature,) = features({"column": "c", **SPECS[name]})
    return feature


def column(values: list[Any]) -> dict[str, np.ndarray]:
    array = np.empty(len(values), object)
    array[:] = values
    return {"c": array}


def fit(name: str, values: list[Any], train: list[bool] | None = None) -> FittedColumns:
    kept = np.ones(len(values), bool) if train is None else np.array(train, bool)
    return fit_columns([spec(name)], column(values), kept)


def same(left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]) -> bool:
    return all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(left, right, strict=True)
    )


@each_kind
def test_a_column_equals_its_rows_one_by_one(name: str) -> None:
    rng = np.random.default_rng(0)
    values = [*MIXED, *rng.lognormal(3, 1, 300).tolist(), *map(str, rng.integers(0, 9, 50))]
    fitted = fit(name, values)
    rows = [fitted.transform(column([value])) for value in values]
    joined = tuple(np.concatenate(part) for part in zip(*rows, strict=True))
    assert same(fitted.transform(column(values)), joined)  # type: ignore[arg-type]


@each_kind
@settings(deadline=None, max_examples=25)
@given(values=st.lists(CELLS, max_size=20), query=st.lists(CELLS, min_size=1, max_size=5), data=st.data())
def test_any_cells_give_finite_numbers_and_rows_in_range(
    name: str, values: list[Any], query: list[Any], data: st.DataObject
) -> None:
    train = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    fitted = fit(name, values, train)
    whole = fitted.transform(column(query))
    assert whole[0].shape == (len(query), fitted.dense_width) and whole[0].dtype == np.float32
    assert whole[1].shape == (len(query), len(fitted.categories)) and whole[1].dtype == np.int32
    assert np.isfinite(whole[0]).all()
    assert ((whole[1] >= 0) & (whole[1] < np.array(fitted.categories, int))).all()
    first = fitted.transform(column(query[:1]))
    assert same(first, (whole[0][:1], whole[1][:1]))


@each_kind
def test_saved_and_loaded_gives_the_same(name: str, tmp_path: Path) -> None:
    values = [*MIXED, *range(40)]
    fitted = fit(name, values)
    fitted.save(tmp_path, "item")
    loaded = FittedColumns.load(tmp_path, "item")
    assert (loaded.dense_width, loaded.categories) == (fitted.dense_width, fitted.categories)
    assert same(loaded.transform(column(values)), fitted.transform(column(values)))
    assert {path.suffix for path in (tmp_path / "item").iterdir()} <= {".json", ".npy"}


@each_kind
def test_statistics_come_from_training_rows_only(name: str, tmp_path: Path) -> None:
    seen = ["red", "blue red", 1, 2.5, None, "red"]
    train = [True] * len(seen) + [False, False]
    fit(name, [*seen, "green", 1e6], train).save(tmp_path, "first")
    fit(name, [*seen, "other words", -5], train).save(tmp_path, "second")
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("first", "second")
    )
    assert first == second


@each_kind
def test_no_training_rows_at_all(name: str) -> None:
    dense, category = fit(name, ["red", 3], [False, False]).transform(column(["red", 3, None]))
    assert np.isfinite(dense).all() and len(category) == 3


def test_several_features_keep_the_order_of_the_recipe() -> None:
    specs = features(
        {"kind": "number", "column": "price", "normalise": "none", "missing": "category"},
        {"kind": "category", "column": "kind"},
        {"kind": "text", "column": "title", "buckets": 4},
        {"kind": "category", "column": "brand", "buckets": 9},
    )
    columns = {
        "price": np.array([2.0, None], object),
        "kind": np.array(["a", "b"], object),
        "title": np.array(["x", "y"], object),
        "brand": np.array(["n", None], object),
    }
    fitted = fit_columns(specs, columns, np.array([True, True]))
    assert (fitted.dense_width, fitted.categories) == (6, [3, 10])
    dense, category = fitted.transform(columns)
    assert dense[:, :2].tolist() == [[2, 0], [2, 1]]
    assert category[:, 0].tolist() == [1, 2] and category[1, 1] == 0


def test_no_features_give_rows_without_width() -> None:
    dense, category = fit_columns([], {}, np.zeros(0, bool)).transform({}, rows=3)
    assert dense.shape == (3, 0) and category.shape == (3, 0)


def test_an_absent_column_is_named_with_those_present() -> None:
    with pytest.raises(RecipeError, match=r"no attribute column 'c'.*'price'"):
        fit_columns([spec("category")], {"price": np.zeros(1, object)}, np.ones(1, bool))


@pytest.mark.parametrize("damage", ["missing", "truncated", "array", "kind"])
def test_a_damaged_state_is_refused(damage: str, tmp_path: Path) -> None:
    fit("text-tfidf", ["a", "b"]).save(tmp_path, "item")
    state = tmp_path / "item" / "state.json"
    if damage == "missing":
        state.unlink()
    elif damage == "truncated":
        state.write_bytes(state.read_bytes()[:-20])
    elif damage == "array":
        (tmp_path / "item" / "0.idf.npy").write_bytes(b"\x80\x04K\x01.")  # a pickle
    else:
        state.write_text(state.read_text().replace('"text"', '"sound"'))
    with pytest.raises(ArtifactError, match="prepare"):
        FittedColumns.load(tmp_path, "item")


LENGTH = '''
"""The length of a text."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from app.features.base import Array, Feature, State, as_text


@dataclass(frozen=True)
class Length(Feature):
    """A text column as its length over the longest of training."""

    longest: int = field(default=0, metadata={"ge": 0, "description": "0: of the training part"})

    def fit(self, column: Array) -> State:
        longest = self.longest or max((len(as_text(value)) for value in column), default=1)
        return {"longest": longest, "scale": np.array([max(1, longest)], np.float64)}

    def transform(self, column: Array, state: State) -> Array:
        lengths = np.fromiter((len(as_text(value)) for value in column), np.float64, len(column))
        return np.minimum(lengths / state["scale"], 1).astype(np.float32)[:, None]
'''


@pytest.fixture
def length_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A kind of feature that is nothing but one file."""
    folder = tmp_path / "more_kinds"
    folder.mkdir()
    (folder / "length.py").write_text(LENGTH)
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(folder)])
    monkeypatch.setitem(SPECS, "length", {"kind": "length"})
    yield
    sys.modules.pop("app.features.kinds.length", None)


def test_a_kind_of_one_file_is_a_kind_like_any_other(length_kind: None, tmp_path: Path) -> None:
    """Recipe, `rayrec init`, fitting, saving, and one row as many: nothing else names the kind."""
    test_a_column_equals_its_rows_one_by_one("length")
    test_saved_and_loaded_gives_the_same("length", tmp_path)
    test_statistics_come_from_training_rows_only("length", tmp_path)
    test_no_training_rows_at_all("length")
    fitted = fit("length", ["ab", "abcd", None])
    assert fitted.transform(column(["a", "abcd", "longer", None]))[0].tolist() == [[0.25], [1], [1], [0]]
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(Recipe()))
    assert "# longest = 0  # 0: of the training part" in path.read_text()
    recipe = load(path, ['features.item=[{kind = "length", column = "title", longest = 9}]'])
    path.write_text(to_toml(recipe))
    assert load(path) == recipe
    assert recipe.part("features")["features"]["item"] == [
        {"kind": "length", "column": "title", "longest": 9}
    ]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"column": "c", "kind": "sound"},
            r"item\.0\.kind = 'sound': no .*kind.*category, image_vector, length, number",
        ),
        ({"column": "c", "kind": ["text"]}, r"item\.0\.kind = \['text'\]: no .* kind"),
        ({"kind": "length"}, r"item\.0\.column.*required"),
        (
            {"column": "c", "kind": "length", "longest": -1},
            r"item\.0\.longest = -1: .*or equal to 0",
        ),
        (
            {"column": "c", "kind": "length", "longst": 1},
            r"unknown .*0\.longst.*did you mean 'longest'",
        ),
        ({"column": "c", "normalise": "magic"}, r"item\.0\.normalise = 'magic': .*minmax"),
        ({"column": "c", "kind": "text", "buckets": 0}, r"item\.0\.buckets = 0"),
        ("c", r"item\.0 = 'c': .*table"),
    ],
)
def test_a_mistake_in_an_entry_names_key_value_and_what_is_known(
    length_kind: None, entry: Any, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse({"features": {"item": [entry]}}, "recipe.toml")
    assert caught.value.remedy and caught.value.where == "recipe.toml"
