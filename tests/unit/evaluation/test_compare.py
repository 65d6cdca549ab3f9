"""Paired comparison: differences that hold request by request, and models that lose to a baseline."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from torch import Tensor

from app.data.dataset import Array, Dataset
from app.data.values.text import stable_hash
from app.evaluation.compare import Difference, headline, paired, ranks_of
from app.evaluation.evaluate import evaluate
from app.evaluation.measure import Measurement, measure
from app.evaluation.ranking import Protocol, rank
from app.evaluation.report import write_report
from app.evaluation.requests import requests_of
from app.evaluation.scorer import ModelScorer
from app.evaluation.validate import validated
from app.models.base import Batch
from app.models.build import build_model
from app.recipe import Recipe, parse
from tests.tiny import tiny_dataset


def measured(values: Array, weights: Array | None = None) -> Measurement:
    """An evaluation of as many requests, whose figure is the mean of the values."""
    under = np.ones(len(values)) if weights is None else weights
    ratios = {"ndcg@10": (values, under)}
    figures = {"ndcg@10": float(values.sum() / under.sum())}
    return Measurement(ratios, figures, [], 0)


def recipe(**evaluate: Any) -> Recipe:
    return parse({"model": {"name": "popularity"}, "evaluate": evaluate}, "test")


class Reversed(ModelScorer):
    """Ranks the other way round."""

    def all(self, batch: Batch) -> Tensor:
        return -super().all(batch)


def test_a_model_better_by_a_tenth_for_everyone_is_better_by_a_tenth_without_doubt() -> None:
    """The figures themselves vary from 0 to .9 among requests, their difference does not."""
    hard = np.linspace(0, 0.9, 50)
    difference = paired(measured(hard + 0.1), measured(hard), "ndcg@10", 100, 0)
    assert difference == pytest.approx((0.1, 0.1, 0.1))


def test_the_interval_of_a_difference_by_hand() -> None:
    """Two requests, better by 1 on one and worse by 1 on the other: resamples give -1, 0 and 1."""
    difference = paired(measured(np.array([1.0, 0.0])), measured(np.array([0.0, 1.0])), "ndcg@10", 1000, 3)
    assert difference == (0.0, -1.0, 1.0)
    assert paired(measured(np.array([1.0])), measured(np.array([0.0])), "ndcg@10", 10, 0) == (1, 1, 1)


def test_a_figure_of_weighted_requests_is_compared_as_it_is_computed() -> None:
    """Sums of numerators over sums of denominators: 3 / 4 against 1 / 2."""
    first = measured(np.array([3.0, 0.0]), np.array([3.0, 1.0]))
    second = measured(np.array([1.0, 0.0]), np.array([1.0, 1.0]))
    value, low, high = paired(first, second, "ndcg@10", 500, 0)
    assert value == pytest.approx(0.25)
    assert low <= value <= high


def test_no_resamples_give_no_interval_and_other_requests_no_comparison() -> None:
    value, low, high = paired(measured(np.ones(3)), measured(np.zeros(3)), "ndcg@10", 0, 0)
    assert value == 1 and math.isnan(low) and math.isnan(high)
    with pytest.raises(ValueError, match="3 and 4 requests"):
        paired(measured(np.ones(3)), measured(np.ones(4)), "ndcg@10", 10, 0)


def test_the_headline_is_the_cut_off_nearest_to_ten() -> None:
    assert headline(["auc", "ndcg@10", "ndcg@20", "hit_rate@10"]) == "ndcg@10"
    assert headline(["ndcg@10", "ndcg@10", "ndcg@20"]) == "ndcg@10"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("compare") / "dataset", users=60, events=900)


def test_a_model_that_loses_is_said_to_be_behind(dataset: Dataset, tmp_path: Path) -> None:
    worst = Reversed(build_model("popularity", {}, dataset))
    report = evaluate(recipe(k=[5]), dataset, worst, baselines=True)
    # The recipe names popularity: that baseline counts as the model itself and is level with it.
    assert report.behind == ["item_knn"]
    value, low, high = report.differences["item_knn"]["ndcg@10"]
    assert value == pytest.approx(report.figures["ndcg@10"] - report.baselines["item_knn"]["ndcg@10"])
    assert low <= value <= high < 0
    assert report.differences["popularity"]["ndcg@10"] == [0, 0, 0]
    written = write_report(report, tmp_path / "report")
    page = (written.path / "report.md").read_text()
    assert "**item_knn ranks better than this model.**" in page and "rayrec tune" in page
    assert page.index("below item_knn's") < page.index("above popularity's")
    assert written.figures["behind"] == ["item_knn"]
    content = json.loads((written.path / "report.json").read_text())
    assert content["differences"]["item_knn"]["ndcg@10"] == [value, low, high]


def test_a_model_that_wins_is_not(dataset: Dataset) -> None:
    good = ModelScorer(build_model("item_knn", {}, dataset))
    named = parse({"model": {"name": "mlp"}, "evaluate": {"baselines": ["popularity"]}}, "test")
    report = evaluate(named, dataset, good)
    assert report.behind == []
    assert report.differences["popularity"]["ndcg@10"][1] > 0


def test_candidates_of_a_choice_are_compared_over_the_same_validation_users(dataset: Dataset) -> None:
    good, worst = (
        validated(recipe(), dataset, scorer, 40, 7)
        for scorer in (
            ModelScorer(build_model("item_knn", {}, dataset)),
            Reversed(build_model("popularity", {}, dataset)),
        )
    )
    assert good is not None and worst is not None
    difference = paired(good, worst, "ndcg@10", 200, 0)
    assert isinstance(difference, Difference) and difference.low > 0
    assert set(good.figures) == set(good.ratios) and "auc" in good.figures


def test_a_pool_is_the_sum_of_the_hashes_of_what_is_ranked(tmp_path: Path) -> None:
    """By sets, for a few users: all items but the seen ones, and the listed negatives with the target."""
    dataset = tiny_dataset(tmp_path / "dataset", users=20, events=300, negatives=7)
    hashes = [int(value) for value in stable_hash(pl.Series(list(dataset.items)))]
    requests = requests_of(dataset, "test")
    scorer = ModelScorer(build_model("popularity", {}, dataset))
    for protocol in (Protocol("all"), Protocol("all", exclude_seen=False), Protocol("listed")):
        ranked = measure(dataset, rank(dataset, requests, scorer, protocol), [10], 0)
        table = ranks_of(dataset, requests, ranked, protocol).to_pylist()
        assert [row["rank"] for row in table] == ranked.rank.tolist()
        for row in table[:5]:
            user, target = list(dataset.users).index(row["user"]), list(dataset.items).index(row["item"])
            seen = {
                int(item) for part in (dataset.train, dataset.valid) for item in part.item[part.user == user]
            }
            ranked_items = set(range(1, dataset.schema.items)) - (seen if protocol.exclude_seen else set())
            if protocol.candidates == "listed":
                assert dataset.test.negatives is not None
                ranked_items = {*dataset.test.negatives[dataset.test.user == user][0], target}
            expected = ranked_items - ({target} if protocol.candidates == "listed" else set())
            assert row["pool"] == sum(hashes[item] for item in expected) % 2**64
            assert row["candidates"] == len(ranked_items)


def test_the_share_that_compression_keeps_is_that_of_the_same_users(dataset: Dataset, tmp_path: Path) -> None:
    full, half = (ModelScorer(build_model(name, {}, dataset)) for name in ("item_knn", "popularity"))
    report = evaluate(recipe(), dataset, half, baselines=False, uncompressed=full)
    whole = evaluate(recipe(), dataset, full, baselines=False, uncompressed=full)
    share, low, high = report.kept["ndcg@10"]
    assert share == pytest.approx(report.figures["ndcg@10"] / whole.figures["ndcg@10"])
    assert low <= share <= high < 1
    assert whole.kept["ndcg@10"] == [1, 1, 1], "the same model, user by user"
    assert f"compressed, the model keeps {share:.1%} of its ndcg@10" in report.notes[-1]
    assert evaluate(recipe(), dataset, half, baselines=False).kept == {}
    written = write_report(report, tmp_path / "report")
    assert written.figures["kept"]["ndcg@10"] == [share, low, high]
