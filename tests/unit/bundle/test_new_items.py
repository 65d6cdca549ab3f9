"""Items that came after training: ranked by their content, matched by filters, without a change to others."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.bundle.new_items import cell
from app.bundle.request.limits import Limits
from app.bundle.request.requests import Answer, Context, RankRequest, RecommendRequest, SimilarRequest
from app.bundle.retrieval.candidates import CandidateGenerators
from app.bundle.runtime import Ranker
from app.data.dataset import Dataset
from app.data.values.text import text_of
from app.errors import RequestError
from app.events import HistoryEvent
from app.features.columns import fit_columns
from app.models.base import Model
from app.recipe import parse
from app.tables.dense import DenseTable
from tests.bundles import NOW, bundle_of, describe_items, random_model
from tests.tiny import tiny_dataset

ITEMS = 60
MOMENT = Context(timestamp=float(NOW))
KINDS = ["bags", "hats", "shoes", "ties"]
COLUMNS: dict[str, list[Any]] = {  # of the items 1 to 60
    "kind": [KINDS[row % 4] for row in range(ITEMS)],
    **{name: [float((row * step) % 17) for row in range(ITEMS)] for step, name in enumerate("abcd", 1)},
}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {  # model, and [export]
    "exact": ("two_tower", {}),
    "faiss": ("two_tower", {"index": "ivf_sq8"}),
    "all": ("mlp", {}),
    "sources": ("mlp", {"candidates": 15}),
}
NEW = {"kind": "hats", "a": 3, "b": "7", "c": 1.5, "d": None}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = tiny_dataset(tmp_path_factory.mktemp("new") / "dataset", users=60, items=ITEMS, events=900)
    describe_items(dataset, **{name: [None, *values] for name, values in COLUMNS.items()})
    item = [{"kind": "number", "column": name} for name in "abcd"] + [{"kind": "category", "column": "kind"}]
    fitted = fit_columns(
        parse({"features": {"item": item}}, "test").features.item, columns(), np.ones(ITEMS, bool)
    )
    fitted.save(dataset.path / "features", "item")
    (dataset.path / "features" / "item" / "fills.json").write_text('{"a": "4"}')
    for name, values in zip(("dense", "category"), fitted.transform(columns()), strict=True):
        np.save(dataset.path / "features" / f"item_{name}.npy", np.pad(values, ((1, 0), (0, 0))))
    return dataset


def columns() -> dict[str, Any]:
    return {name: np.array(values, object) for name, values in COLUMNS.items()}


@pytest.fixture(params=WAYS)
def ranker(request: pytest.FixtureRequest, bundles: dict[str, Path]) -> Ranker:
    return Ranker.open(bundles[request.param], limits=Limits(max_new_items=8))


@pytest.fixture(scope="module")
def bundles(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for way, (model, export) in WAYS.items():
        folders[way] = tmp_path_factory.mktemp(way) / "bundle"
        bundle_of(random_model(model, dataset), dataset, folders[way], settings=export)
    return folders


def like(row: int) -> dict[str, Any]:
    """The columns of a known item."""
    return {name: values[row - 1] for name, values in COLUMNS.items()}


def rank(ranker: Ranker, items: list[str], history: list[HistoryEvent] | None = None) -> dict[str, float]:
    (answer,) = ranker.rank([RankRequest("u7", items, history=history, context=MOMENT)])
    return {one.item: one.score for one in answer.items}


def recommend(ranker: Ranker, **rest: Any) -> Answer:
    request = RecommendRequest("u7", context=MOMENT, exclude_seen=False, **rest)
    return ranker.recommend([request])[0]


def names(answer: Answer) -> list[str]:
    return [one.item for one in answer.items]


def without_id(model: Model, row: int, content: int) -> Model:
    """A model in which an item has the embedding of the unknown one, and the content of another."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for module in other.modules():
            if isinstance(module, DenseTable) and module.embedding.num_embeddings == ITEMS + 1:
                module.embedding.weight[row] = module.embedding.weight[0]
        for table in (other.item_dense, other.item_category):
            table[row] = table[content]
        other.log_popularity[row] = other.log_popularity[0]
    return other


@pytest.mark.parametrize("name", ["mlp", "two_tower", "neumf", "bilinear"])
def test_a_new_item_ranks_as_the_model_says_of_its_content(
    name: str, dataset: Dataset, tmp_path: Path
) -> None:
    model = random_model(name, dataset)
    ranker = bundle_of(model, dataset, tmp_path / "bundle")
    expected = bundle_of(without_id(model, 60, content=5), dataset, tmp_path / "expected")
    assert ranker.basis_of("new") == "content"
    ranker.put_items({"new": like(5)})
    for item, other in (("new", "i60"), ("i3", "i3")):
        for met in ("new", "i3"):
            score = rank(ranker, [item], [HistoryEvent(met, "buy", NOW - 60.0)])[item]
            there = rank(expected, [other], [HistoryEvent(met.replace("new", "i60"), "buy", NOW - 60.0)])
            assert score == pytest.approx(there[other], abs=1e-4)


def test_every_call_knows_a_new_item(ranker: Ranker) -> None:
    assert names(recommend(ranker, filter="kind = 'hats' and a = 3 and b = 7 and c > 1.2 and c < 1.8")) == []
    ranker.put_items({"new": NEW, "other": like(9)})
    answer = recommend(ranker, filter="kind = 'hats' and a = 3 and b = 7 and c > 1.2 and c < 1.8")
    assert names(answer) == ["new"]
    assert answer.items[0].score == pytest.approx(rank(ranker, ["new"])["new"], abs=1e-4)
    assert names(recommend(ranker, filter="d is null")) == ["new"]
    assert names(recommend(ranker, filter="d is null", exclude=["new"])) == []
    assert {"new", "other"} <= set(names(recommend(ranker, k=62)))
    assert len(names(recommend(ranker, k=10, caps={"kind": 1}))) == 4
    (similar,) = ranker.similar([SimilarRequest("new", 61)])
    assert sorted(names(similar)) == sorted(["other", *(f"i{row}" for row in range(1, ITEMS + 1))])
    assert "new" in names(ranker.similar([SimilarRequest("i1", 61)])[0])


def test_a_new_value_is_a_value_of_its_own_for_caps(ranker: Ranker) -> None:
    ranker.put_items({f"n{n}": {**NEW, "kind": "capes"} for n in range(3)})
    named = names(recommend(ranker, filter="kind = 'capes' or kind = 'hats'", caps={"kind": 2}))
    assert len(named) == 4 and sum(name.startswith("n") for name in named) == 2


def test_the_best_of_all_are_the_best_with_new_items_among_them(bundles: dict[str, Path]) -> None:
    for way in ("exact", "faiss", "all"):
        ranker = Ranker.open(bundles[way])
        ranker.put_items({f"n{row}": like(row) for row in range(1, ITEMS + 1)})
        scores = rank(ranker, [*(f"i{row}" for row in range(1, 61)), *(f"n{row}" for row in range(1, 61))])
        answer = recommend(ranker, k=100)
        best = sorted(scores.values(), reverse=True)[:100]
        assert [one.score for one in answer.items] == pytest.approx(best, abs=1e-4), way


def test_a_known_item_keeps_its_score_and_changes_its_columns(ranker: Ranker) -> None:
    before = rank(ranker, ["i1", "i2"])
    assert ranker.basis_of("i2") == "training"
    ranker.put_items({"i2": {"kind": "wigs", "a": 99}})
    assert names(recommend(ranker, filter="a = 99")) == ["i2"]
    assert names(recommend(ranker, filter="kind like 'w%'")) == ["i2"]
    assert "i2" not in names(recommend(ranker, k=60, filter="kind = 'hats'"))
    assert rank(ranker, ["i1", "i2"]) == before
    ranker.put_items({"i2": {"kind": "hats", "a": 98}})
    assert names(recommend(ranker, filter="a > 97 and kind = 'hats'")) == ["i2"]


def test_a_new_item_that_changes_keeps_its_place(ranker: Ranker) -> None:
    ranker.put_items({"new": like(5), "other": like(6)})
    first, other = rank(ranker, ["new"]), rank(ranker, ["other"])
    ranker.put_items({"new": like(10)})
    assert rank(ranker, ["new"]) != first and rank(ranker, ["other"]) == other
    ranker.put_items({"new": like(5)})
    assert rank(ranker, ["new"]) == first


cells = st.one_of(st.none(), st.floats(-50, 50), st.integers(-5, 5).map(str))
puts = st.dictionaries(
    st.sampled_from(["x", "y", "z", "i4", "i50"]),
    st.fixed_dictionaries(
        {}, optional={"kind": st.sampled_from([*KINDS, "", "é"]), **dict.fromkeys("abcd", cells)}
    ),
    max_size=5,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(puts, max_size=3))
def test_nothing_that_is_put_changes_a_known_items_score(bundles: dict[str, Path], steps: list[Any]) -> None:
    ranker = Ranker.open(bundles["all"], verify=False)
    known = [f"i{row}" for row in range(1, ITEMS + 1)]
    before = rank(ranker, known)
    for items in steps:
        assert ranker.put_items(items) == 0
        assert rank(ranker, known) == before
    new = {name for items in steps for name in items if not name.startswith("i")}
    assert set(names(recommend(ranker, k=100))) == {*known, *new}


def test_a_missing_value_is_filled_as_it_was_in_training(ranker: Ranker) -> None:
    ranker.put_items({"filled": {**NEW, "a": 4}, "missing": {**NEW, "a": None}, "other": {**NEW, "a": 9}})
    scores = rank(ranker, ["filled", "missing", "other"])
    assert scores["filled"] == pytest.approx(scores["missing"], abs=1e-5)
    assert scores["filled"] != pytest.approx(scores["other"], abs=1e-3)
    assert names(recommend(ranker, filter="a is null")) == ["missing"]


def test_what_cannot_be_used_is_refused(ranker: Ranker) -> None:
    wrong = {"colour": "red", "a": "cheap", "kind": "x" * 20_000}
    for name, value in wrong.items():
        with pytest.raises(RequestError) as caught:
            ranker.check_item("new", {name: value})
        assert caught.value.where == f"columns.{name}"
    with pytest.raises(RequestError):
        ranker.check_item("", {})
    ranker.check_item("new", NEW)


def test_new_items_are_explored_first_and_are_the_least_popular() -> None:
    generators = CandidateGenerators({"popular": np.array([2, 1]), "fresh": np.array([1])})
    with_new_items = generators.with_new_items(np.array([2, 1, 3, 4]), np.array([4, 3]))
    assert with_new_items.all_fresh.tolist() == [4, 3, 1]
    assert with_new_items.by_popularity.tolist() == [2, 1, 3, 4]


def test_there_is_room_for_so_many(ranker: Ranker) -> None:
    assert ranker.put_items({f"n{n}": {} for n in range(10)}) == 2
    assert not ranker.has_room_for("n8") and ranker.has_room_for("n7")
    assert "n8" not in names(recommend(ranker, k=80))
    assert ranker.put_items({"n7": NEW}) == 0
    assert names(recommend(ranker, filter="b = 7 and c = 1.5")) == ["n7"]


def test_an_answer_with_a_new_item_is_a_cold_start(ranker: Ranker) -> None:
    ranker.put_items({"new": NEW})
    answers = ranker.rank([RankRequest("u7", ["i1"]), RankRequest("u7", ["i1", "new"])])
    assert [answer.cold_start for answer in answers] == [False, True]


def test_without_content_features_it_ranks_as_an_unknown_item(dataset: Dataset, tmp_path: Path) -> None:
    ranker = bundle_of(random_model("popularity", dataset), dataset, tmp_path / "bundle")
    ranker.put_items({"new": NEW})
    assert ranker.basis_of("new") == "nothing"
    scores = rank(ranker, ["new", "nobody knows"])
    assert scores["new"] == scores["nobody knows"]
    assert names(recommend(ranker, filter="d is null")) == ["new"]


plain = st.text(st.characters(exclude_categories=("Cc", "Cs")))


@given(st.one_of(plain, st.integers(-(2**53), 2**53), st.booleans(), st.lists(st.text("abc", min_size=1))))
def test_a_value_is_the_text_that_a_file_makes_of_it(value: Any) -> None:
    kind = pl.List(pl.String) if isinstance(value, list) else None
    assert cell(value) == text_of(pl.Series([value], dtype=kind)).to_list()[0]


def test_a_vector_of_another_width_is_refused_by_name(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset", users=60, items=ITEMS, events=900)
    item = [{"kind": "vector", "column": "embedding"}, {"kind": "category", "column": "kind"}]
    rng, cells = np.random.default_rng(0), np.empty(ITEMS, object)
    cells[:] = [rng.normal(size=3).tolist() for _ in range(ITEMS)]
    values = {"embedding": cells, "kind": np.array(COLUMNS["kind"], object)}
    fitted = fit_columns(
        parse({"features": {"item": item}}, "test").features.item, values, np.ones(ITEMS, bool)
    )
    fitted.save(dataset.path / "features", "item")
    for name, floats in zip(("dense", "category"), fitted.transform(values), strict=True):
        np.save(dataset.path / "features" / f"item_{name}.npy", np.pad(floats, ((1, 0), (0, 0))))
    ranker = bundle_of(random_model("two_tower", dataset), dataset, tmp_path / "bundle")
    check = ranker.new_items.check
    check({"embedding": [0.5, 1, 2]})
    check({"embedding": None})
    with pytest.raises(RequestError, match=r"columns\.embedding.*another width than 3"):
        check({"embedding": [1.0, 2.0]})
    with pytest.raises(RequestError, match=r"columns\.embedding.*NaN or infinite"):
        check({"embedding": "1 nan 3"})
    with pytest.raises(RequestError, match=r"columns\.embedding.*more than 10096 bytes"):
        check({"embedding": "1" * 10_097})
    row = next(r for r in range(1, ITEMS) if dataset.trained["item"][r])
    ranker.put_items({"like": {"embedding": cells[row - 1]}, "none": {}})
    assert not np.allclose(*ranker.new_items.rows["item"])
