"""Recommendations in two stages: rules, filters, candidates, time budgets."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.artifact import publish
from app.bundle.export.from_dataset import popularity_of
from app.bundle.request.limits import Limits
from app.bundle.request.requests import Answer, Boost, Context, RankRequest, RecommendRequest, SimilarRequest
from app.bundle.retrieval.latency_budget import FEWER, FORGET, FULL, POPULAR, LatencyBudget
from app.bundle.runtime import Ranker
from app.data.dataset import Dataset
from app.errors import RequestError
from app.events import HistoryEvent
from tests.bundles import NOW, bundle_of, describe_items, random_model
from tests.tiny import tiny_dataset

ITEMS = 60
MOMENT = Context(timestamp=float(NOW))
KINDS = ["bags", "hats", "shoes"]
CATEGORY = ["", *(KINDS[row % 3] for row in range(1, ITEMS + 1))]
PRICE = [None, *(float(row) for row in range(1, ITEMS + 1))]
WAYS: dict[str, tuple[str, dict[str, Any]]] = {  # model, and [export]
    "exact": ("two_tower", {}),
    "faiss": ("two_tower", {"index": "ivf_sq8"}),
    "all": ("mlp", {}),
    "sources": ("mlp", {"candidates": 15}),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = tiny_dataset(
        tmp_path_factory.mktemp("recommend") / "dataset", users=60, items=ITEMS, events=900
    )
    describe_items(dataset, category=[None, *CATEGORY[1:]], price=PRICE)
    return dataset


@pytest.fixture(scope="module", params=WAYS)
def ranker(
    request: pytest.FixtureRequest, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Ranker:
    model, export = WAYS[request.param]
    out = tmp_path_factory.mktemp(request.param) / "bundle"
    return bundle_of(random_model(model, dataset), dataset, out, settings=export)


@pytest.fixture(scope="module")
def exact(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    return bundle_of(random_model("mlp", dataset), dataset, tmp_path_factory.mktemp("plain") / "bundle")


def ask(ranker: Ranker, **changes: Any) -> Answer:
    request = RecommendRequest(**{"user": "u3", "k": 10, "context": MOMENT, "exclude_seen": False, **changes})
    (answer,) = ranker.recommend([request])
    return answer


def rows(answer: Answer) -> list[int]:
    return [int(one.item[1:]) for one in answer.items]


def scores(ranker: Ranker, user: str = "u3") -> dict[int, float]:
    """The ranker's score of every item."""
    request = RankRequest(user, [f"i{row}" for row in range(1, ITEMS + 1)], context=MOMENT)
    (answer,) = ranker.rank([request])
    return {int(one.item[1:]): one.score for one in answer.items}


def test_scores_are_the_rankers(ranker: Ranker) -> None:
    full = scores(ranker)
    for one in ask(ranker).items:
        assert one.score == pytest.approx(full[int(one.item[1:])], abs=1e-5)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("price <= 4", {1, 2, 3, 4}),
        ("category = 'hats' and price > 50", {52, 55, 58}),
        ("category in ['hats'] and category in ['bags']", set()),
        ("price is null", set()),
    ],
)
def test_a_narrow_filter_gives_all_that_match(ranker: Ranker, text: str, kept: set[int]) -> None:
    answer = ask(ranker, filter=text)
    assert set(rows(answer)) == kept
    full = scores(ranker)
    assert rows(answer) == sorted(kept, key=lambda row: -full[row]), "ranked"


def test_an_exact_answer_is_the_sorted_whole(ranker: Ranker, exact: Ranker) -> None:
    full = scores(exact)
    expected = [row for row in sorted(full, key=lambda row: -full[row]) if CATEGORY[row] != "hats"][:10]
    assert rows(ask(exact, filter="category != 'hats'")) == expected


filters = st.sampled_from(
    ["", "price < 30", "price > 55", "category = 'hats'", "not category in ['bags', 'hats']", "price < 0"]
)


@settings(deadline=None, max_examples=60)
@given(
    user=st.sampled_from(["u1", "u7", "u30", "stranger"]),
    k=st.integers(1, 70),
    filter_=filters,
    caps=st.sampled_from([{}, {"category": 1}, {"category": 4}]),
    diversity=st.sampled_from([0.0, 0.3, 1.0]),
    boosts=st.lists(st.builds(Boost, filters.filter(bool), st.sampled_from([-5.0, 0.5, 100.0])), max_size=2),
    explore=st.sampled_from([0.0, 0.2, 1.0]),
    excluded=st.sets(st.integers(1, ITEMS), max_size=5),
    exclude_seen=st.booleans(),
)
def test_promises(
    ranker: Ranker,
    dataset: Dataset,
    user: str,
    k: int,
    filter_: str,
    caps: dict[str, int],
    diversity: float,
    boosts: list[Boost],
    explore: float,
    excluded: set[int],
    exclude_seen: bool,
) -> None:
    """Nothing twice, nothing left out or filtered out, caps kept, and k items wherever there are k."""
    answer = ask(
        ranker, user=user, k=k, filter=filter_, caps=caps, diversity=diversity, boost=boosts, explore=explore,
        exclude=[f"i{row}" for row in excluded], exclude_seen=exclude_seen,
    )  # fmt: skip
    chosen = rows(answer)
    met = seen(dataset, user) if exclude_seen else set()
    may = [row for row in range(1, ITEMS + 1) if row not in excluded | met and matches(filter_, row)]
    assert len(chosen) == len(set(chosen)) and set(chosen) <= set(may)
    per = Counter(CATEGORY[row] for row in may)
    most = caps.get("category", ITEMS)
    assert len(chosen) == min(k, sum(min(count, most) for count in per.values()))
    assert all(count <= most for count in Counter(CATEGORY[row] for row in chosen).values())


def matches(text: str, row: int) -> bool:
    return {
        "": True,
        "price < 30": row < 30,
        "price > 55": row > 55,
        "category = 'hats'": CATEGORY[row] == "hats",
        "not category in ['bags', 'hats']": CATEGORY[row] == "shoes",
        "price < 0": False,
    }[text]


def seen(dataset: Dataset, user: str) -> set[int]:
    if user == "stranger":
        return set()
    row = int(user[1:])
    parts = dataset.parts
    return {int(i) for part in parts for i in part.item[part.indptr[row] : part.indptr[row + 1]]}


def test_boosts_move_items_and_show_in_the_score(exact: Ranker) -> None:
    full = scores(exact)
    answer = ask(exact, boost=[Boost("category = 'hats'", 100.0), Boost("price = 7", 50.0)])
    assert {CATEGORY[row] for row in rows(answer)} == {"hats"}
    by_row = {int(one.item[1:]): one.score for one in answer.items}
    assert rows(answer)[0] == 7 and by_row[7] == pytest.approx(full[7] + 150, abs=1e-3)
    down = ask(exact, boost=[Boost("category = 'hats'", -100.0)])
    assert "hats" not in {CATEGORY[row] for row in rows(down)}


def test_a_boosted_item_comes_though_no_source_names_it(ranker: Ranker) -> None:
    least = min(scores(ranker).items(), key=lambda pair: pair[1])[0]
    assert rows(ask(ranker, k=1, boost=[Boost(f"price = {least}", 1000.0)])) == [least]


def test_diversity_spreads_the_vectors(exact: Ranker) -> None:
    def alike(answer: Answer) -> float:
        vectors = exact._scorer.directions(np.array(rows(answer)))
        return float((vectors @ vectors.T).mean())

    plain, spread = ask(exact), ask(exact, diversity=0.6)
    assert rows(plain)[0] == rows(spread)[0], "the best stays"
    assert alike(spread) < alike(plain)


def test_exploring_keeps_places_for_fresh_items(dataset: Dataset, tmp_path: Path) -> None:
    ranker = bundle_of(random_model("two_tower", dataset), dataset, tmp_path / "bundle")
    fresh = {4, 9}
    np.save(ranker.artifact.path / "candidates/fresh.npy", np.array(sorted(fresh), np.uint8))
    again = Ranker.open(ranker.artifact.path, verify=False)
    assert set(rows(ask(again, k=60, explore=0.1))) == set(range(1, ITEMS + 1))
    assert set(rows(ask(again, k=5, explore=0.4))) >= fresh
    assert len(set(rows(ask(again, k=5, explore=0.01))) & fresh) >= 1, "a share is rounded up"


def test_rules_that_a_bundle_cannot_keep_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    ranker = bundle_of(random_model("popularity", dataset), dataset, tmp_path / "bundle")
    for changes, field, message in [
        ({"diversity": 0.5}, "diversity", "no item vectors"),
        ({"caps": {"price": 3}}, "caps", "category"),
        ({"filter": "colour = 1"}, "filter", "category, price"),
        ({"boost": [Boost("price =", 1.0)]}, "boost[0].filter", "position"),
    ]:
        with pytest.raises(RequestError, match=message) as error:
            ask(ranker, **changes)  # type: ignore[arg-type]
        assert error.value.where == field


def test_a_batch_answers_each_as_alone(ranker: Ranker) -> None:
    requests = [
        RecommendRequest("u3", k=5, context=MOMENT),
        RecommendRequest("u4", k=12, context=MOMENT, filter="price < 20"),
        RecommendRequest("stranger", k=3, context=MOMENT, caps={"category": 1}),
        RecommendRequest("u5", k=60, context=MOMENT, diversity=0.5),
        RecommendRequest("u6", k=5, context=MOMENT, history=[HistoryEvent("i1")]),
    ]
    for request, together in zip(requests, ranker.recommend(requests), strict=True):
        (alone,) = ranker.recommend([request])
        assert rows(together) == rows(alone)


def test_the_manifest_tells_how_candidates_are_found(ranker: Ranker) -> None:
    figures = ranker.figures["retrieval"]
    card = (ranker.artifact.path / "card.md").read_text()
    if figures["kind"] in ("exact", "all"):
        assert figures == {"kind": figures["kind"]} and "compare every item" in card
    else:
        assert 0.3 < figures["recall@20"] <= 1 and f"{figures['recall@20']:.1%}" in card


def test_a_bundle_without_the_first_stage_scores_every_item(ranker: Ranker, tmp_path: Path) -> None:
    path = tmp_path / "old"
    with publish(path, "bundle", {}, {}) as draft:
        shutil.copytree(ranker.artifact.path, draft.path, dirs_exist_ok=True)
        for name in ("index", "candidates", "columns"):
            shutil.rmtree(draft.path / name, ignore_errors=True)
        for name in ("retrieval.json", "manifest.json"):
            (draft.path / name).unlink()
    old, full = Ranker.open(path), scores(ranker)
    assert rows(ask(old, k=60)) == sorted(full, key=lambda row: -full[row])
    with pytest.raises(RequestError, match="no columns"):
        ask(old, filter="price < 3")


def test_similar_items_are_those_with_the_highest_cosine(ranker: Ranker) -> None:
    vectors = ranker._scorer.directions(np.arange(ITEMS + 1))
    cosines = vectors @ vectors[5]
    (answer,) = ranker.similar([SimilarRequest("i5", k=7)])
    assert rows(answer) == [row for row in np.argsort(-cosines).tolist() if row not in (0, 5)][:7]
    assert [one.score for one in answer.items] == pytest.approx(cosines[rows(answer)].tolist(), abs=1e-5)


# --- budgets ---------------------------------------------------------------------------


def test_without_time_the_popular_come_and_it_is_said(ranker: Ranker, dataset: Dataset) -> None:
    answer = ask(ranker, budget_ms=1e-6, exclude=["i1"], filter="price < 50", caps={"category": 2})
    assert answer.degraded == "popular" and len(answer.items) == 6
    counts = popularity_of(dataset)
    popular = sorted(range(2, 50), key=lambda row: (-counts[row], row))
    expected = [row for i, row in enumerate(popular) if seldom(popular[:i], row)]
    assert rows(answer) == expected[:6]
    assert [one.score for one in answer.items] == sorted((one.score for one in answer.items), reverse=True)


def seldom(before: list[int], row: int) -> bool:
    return sum(CATEGORY[other] == CATEGORY[row] for other in before) < 2


def test_with_little_time_fewer_candidates_are_ranked(
    ranker: Ranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = ranker.recommender._latency_budget
    monkeypatch.setattr(budget, "_seconds", {FULL: 1e6, FEWER: 0.0})
    answer, full = ask(ranker, budget_ms=50_000.0), scores(ranker)
    assert answer.degraded == "fewer candidates" and len(answer.items) == 10
    assert [one.score for one in answer.items] == pytest.approx([full[r] for r in rows(answer)], abs=1e-5)


def test_with_time_nothing_is_said(ranker: Ranker) -> None:
    for answer in (ask(ranker), ask(ranker, budget_ms=60_000.0)):
        assert not answer.degraded
        assert "degraded" not in msgspec.json.decode(msgspec.json.encode(answer))


def test_the_budget_counts_from_the_arrival(exact: Ranker) -> None:
    late = exact.read(RecommendRequest("u3", budget_ms=100.0), arrived=time.perf_counter() - 1.0)
    assert exact.answer([late])[0].degraded == "popular"


def test_the_rankers_own_budget_holds_where_none_is_named(exact: Ranker) -> None:
    hasty = Ranker.open(exact.artifact.path, limits=Limits(budget_ms=1e-6))
    assert ask(hasty).degraded == "popular"
    assert not ask(hasty, budget_ms=60_000.0).degraded


def test_the_latency_budget_takes_the_best_step_in_time() -> None:
    budget = LatencyBudget()
    assert budget.step(0.001, 1) == FULL, "nothing is known yet"
    budget.record(FULL, 0.010)
    budget.record(FEWER, 0.002)
    assert [budget.step(left, 1) for left in (0.011, 0.003, 0.001, -1.0)] == [FULL, FEWER, POPULAR, POPULAR]
    assert budget.step(0.011, 2) == FEWER, "two take twice as long"


def test_the_latency_budget_learns_slow_at_once_and_fast_by_and_by() -> None:
    budget = LatencyBudget()
    budget.record(FULL, 0.010)
    budget.record(FULL, 0.005)
    assert budget.step(0.0085, 1) == FEWER and budget.step(0.0091, 1) == FULL
    budget.record(FULL, 0.030)
    assert budget.step(0.02, 1) == FEWER


def test_a_step_passed_over_is_tried_again() -> None:
    budget = LatencyBudget()
    budget.record(FULL, 0.010)
    tries = next(n for n in range(1000) if budget.step(0.005, 1) == FULL)
    assert FORGET**tries < 0.6
