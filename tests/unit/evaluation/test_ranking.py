"""The evaluation as a whole: scorers whose right figures are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from app.errors import DataError, RecipeError
from app.evaluation.evaluate import evaluate
from app.evaluation.measure import head_items
from app.evaluation.ranking import Protocol, rank
from app.evaluation.requests import requests_of
from app.evaluation.scorer import ModelScorer
from app.evaluation.validate import cutoffs, protocol_of, validate
from app.models.build import build_model
from app.recipe import parse
from app.tables.rows import Rows
from app.tables.write import write_rows
from tests.tiny import tiny_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("ranking") / "dataset", users=400, events=6000, negatives=20)


def recipe_of(**keys):
    return parse({}, "test").override({k.replace("__", "."): v for k, v in keys.items()})


class Fake:
    """Scores by a function of users (B, 1) and items (B or 1, C)."""

    reads = "recent"

    def __init__(self, dataset, score):
        self.items, self.score = torch.arange(dataset.schema.items)[None], score

    def all(self, batch):
        return self._expand(batch, self.items)

    def candidates(self, batch):
        return self._expand(batch, batch.item)

    def _expand(self, batch, items):
        scores = self.score(batch.user[:, None], items).float()
        return scores.expand(len(batch.user), items.shape[1])


def wanted(dataset, part="test"):
    """(users, items) 1 where the part has the pair."""
    events = getattr(dataset, part)
    table = torch.zeros(dataset.schema.users, dataset.schema.items)
    table[torch.tensor(np.array(events.user)), torch.tensor(np.array(events.item))] = 1
    return table


CONSTANT = lambda users, items: torch.zeros(users.shape[0], items.shape[1])  # noqa: E731


@pytest.mark.parametrize("candidates", ["all", "listed"])
class TestKnownScorers:
    def test_the_oracle_is_perfect(self, dataset, candidates):
        table = wanted(dataset)
        report = evaluate(
            recipe_of(evaluate__candidates=candidates),
            dataset,
            Fake(dataset, lambda users, items: table[users, items]),
            baselines=False,
        )
        for name in ("ndcg@10", "recall@5", "hit_rate@5", "mrr@20", "map@20", "auc"):
            assert report.figures[name] == 1
            if name != "auc":
                assert report.intervals[name] == [1, 1]

    def test_a_constant_scorer_gets_the_random_figure(self, dataset, candidates):
        figures = evaluate(
            recipe_of(evaluate__candidates=candidates), dataset, Fake(dataset, CONSTANT), baselines=False
        ).figures
        ranked = rank(
            dataset,
            requests_of(dataset, "test"),
            Fake(dataset, CONSTANT),
            Protocol(candidates),
        )
        expected = (np.minimum(10, ranked.candidates) / ranked.candidates).mean()
        assert figures["auc"] == 0.5
        assert figures["hit_rate@10"] == pytest.approx(expected, abs=0.08)
        assert figures["log_loss"] == pytest.approx(math.log(2))

    def test_nan_ranks_last_and_is_reported(self, dataset, candidates):
        table = wanted(dataset)
        report = evaluate(
            recipe_of(evaluate__candidates=candidates),
            dataset,
            Fake(dataset, lambda u, i: torch.where(table[u, i] > 0, math.nan, 0.0)),
            baselines=False,
        )
        assert report.figures["auc"] == 0
        assert report.figures["mrr@20"] < 0.1
        assert any("400 scores were NaN" in note for note in report.notes)

    def test_infinite_scores_keep_their_order(self, dataset, candidates):
        table = wanted(dataset)
        figures = evaluate(
            recipe_of(evaluate__candidates=candidates),
            dataset,
            Fake(dataset, lambda u, i: torch.where(table[u, i] > 0, math.inf, -math.inf)),
            baselines=False,
        ).figures
        assert figures["ndcg@5"] == 1


class TestProtocol:
    def test_seen_items_compete_only_when_not_excluded(self, dataset):
        seen = wanted(dataset, "train") + wanted(dataset, "valid")
        scorer = Fake(dataset, lambda users, items: seen[users, items] * 2 + wanted(dataset)[users, items])
        without, with_ = (
            evaluate(recipe_of(evaluate__exclude_seen=e), dataset, scorer, baselines=False).figures
            for e in (True, False)
        )
        assert without["mrr@20"] == 1
        assert with_["mrr@20"] < 0.2

    def test_the_unknown_item_is_never_recommended(self, dataset):
        ranked = rank(
            dataset,
            requests_of(dataset, "test"),
            Fake(dataset, lambda users, items: -items),
            Protocol(exclude_seen=False),
            top=3,
        )
        assert (ranked.top == [1, 2, 3]).all()
        assert (ranked.candidates == dataset.schema.items - 1).all()

    def test_the_result_does_not_depend_on_the_block(self, dataset, monkeypatch):
        scorer = ModelScorer(build_model("item_knn", {}, dataset))
        requests = requests_of(dataset, "test")
        whole = rank(dataset, requests, scorer, Protocol())
        monkeypatch.setattr("app.evaluation.ranking.SCORES", 1)  # blocks of 16
        blocks = rank(dataset, requests, scorer, Protocol())
        np.testing.assert_array_equal(whole.higher, blocks.higher)
        np.testing.assert_array_equal(whole.equal, blocks.equal)

    def test_drawn_negatives_are_candidates_and_no_targets(self, dataset):
        table = wanted(dataset) + 2 * (wanted(dataset, "train") + wanted(dataset, "valid"))
        ranked = rank(
            dataset,
            requests_of(dataset, "test"),
            Fake(dataset, lambda users, items: table[users, items]),
            Protocol(),
            negatives=4,
        )
        assert (ranked.positive == 1).all()
        assert ranked.negative.shape == (400, 4)
        assert (ranked.negative == 0).all()

    def test_listed_without_lists_is_refused(self, tmp_path):
        plain = tiny_dataset(tmp_path / "dataset", users=20)
        with pytest.raises(RecipeError, match="lists no negatives"):
            protocol_of(recipe_of(evaluate__candidates="listed"), plain, "test")


@pytest.fixture(scope="module")
def report(dataset):
    recipe = recipe_of(evaluate__max_users=300)
    return evaluate(recipe, dataset, ModelScorer(build_model("item_knn", {}, dataset)))


class TestFigures:
    def test_all_figures_are_there(self, report):
        names = ("recall", "precision", "hit_rate", "ndcg", "mrr", "map", "coverage", "novelty")
        expected = {f"{name}@{k}" for name in names for k in (5, 10, 20)}
        assert set(report.figures) == expected | {"auc", "log_loss", "accuracy", "f1", "calibration_error"}
        assert all(math.isfinite(v) and v >= 0 for v in report.figures.values())

    def test_intervals_hold_the_figures(self, report):
        for name, (low, high) in report.intervals.items():
            assert low <= report.figures[name] <= high, name
        low, high = report.intervals["hit_rate@10"]
        p = report.figures["hit_rate@10"]
        assert high - low == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / 300), rel=0.3)

    def test_baselines_answer_the_same_requests(self, report):
        assert report.baselines["item_knn"]["ndcg@10"] == report.figures["ndcg@10"]
        assert report.ratios["item_knn"]["ndcg@10"] == 1
        assert report.ratios["popularity"]["ndcg@10"] > 1
        assert "log_loss" not in report.baselines["popularity"]

    def test_segments_partition_the_targets(self, report):
        for kind in ("users", "items"):
            groups = [s for name, s in report.segments.items() if kind in name]
            assert sum(s["targets"] for s in groups) == 300
            mean = sum(s["targets"] * s["ndcg@10"] for s in groups) / 300
            assert mean == pytest.approx(report.figures["ndcg@10"])

    def test_a_note_says_how_many_users_were_drawn(self, report):
        assert any("300 were drawn" in note for note in report.notes)

    def test_head_items_make_four_fifths_of_the_events(self):
        head = head_items(np.array([0, 50, 5, 30, 10, 5, 0]))
        assert head.tolist() == [False, True, False, True, False, False, False]


class TestValidate:
    def test_it_is_the_evaluation_of_the_valid_part(self, dataset):
        recipe, scorer = recipe_of(), ModelScorer(build_model("item_knn", {}, dataset))
        quick = validate(recipe, dataset, scorer, 0, recipe.seed)
        full = evaluate(recipe, dataset, scorer, part="valid", baselines=False).figures
        assert quick == {name: pytest.approx(full[name]) for name in quick}
        assert {"ndcg@10", "hit_rate@10", "recall@20", "auc"} <= set(quick)

    def test_it_is_reproducible(self, dataset):
        recipe, scorer = recipe_of(evaluate__candidates="listed"), Fake(dataset, CONSTANT)
        assert validate(recipe, dataset, scorer, 50, 1) == validate(recipe, dataset, scorer, 50, 1)
        assert protocol_of(recipe, dataset, "valid") == Protocol("sampled", negatives=20, seed=recipe.seed)

    def test_the_cut_off_of_the_training_metric_is_added(self):
        assert cutoffs(recipe_of(train__metric="recall@50")) == [5, 10, 20, 50]
        assert cutoffs(recipe_of(train__metric="auc")) == [5, 10, 20]

    @pytest.mark.parametrize("metric", ["ndgc@10", "ndcg", "ndcg@0", "ndcg@x", "log_loss"])
    def test_an_unknown_training_metric_is_named(self, metric):
        with pytest.raises(RecipeError, match=metric) as caught:
            cutoffs(recipe_of(train__metric=metric))
        assert caught.value.where == "train.metric"


class TestModelScorer:
    @pytest.mark.parametrize("name", ["mlp", "item_knn", "popularity"])
    def test_all_and_candidates_are_the_models_own_scores(self, dataset, name):
        model = build_model(name, {}, dataset)
        items = np.arange(dataset.schema.items)[None].repeat(8, 0)
        batch = requests_of(dataset, "test").batch(dataset, slice(0, 8), items)
        scorer = ModelScorer(model)
        with torch.no_grad():
            expected = model(batch)
        torch.testing.assert_close(scorer.all(batch), expected)
        torch.testing.assert_close(scorer.candidates(batch), expected)

    def test_stored_rows_replace_the_models(self, dataset, tmp_path):
        model = build_model("mlp", {}, dataset)
        with torch.no_grad():
            users, items = torch.arange(dataset.schema.users), torch.arange(dataset.schema.items)
            stored = {
                "user": model.user_rows(users),
                "history": model.history_rows(items),
                "item": model.item_rows(items) * 0,
            }
        for name, rows in stored.items():
            write_rows(tmp_path, name, rows.numpy(), "float32")
        batch = requests_of(dataset, "test").batch(dataset, slice(0, 8), np.ones((8, 2), np.int64))
        same = ModelScorer(model, {name: Rows.open(tmp_path, name) for name in ("user", "history")})
        torch.testing.assert_close(same.all(batch), ModelScorer(model).all(batch))
        zero = ModelScorer(model, {name: Rows.open(tmp_path, name) for name in stored}).all(batch)
        torch.testing.assert_close(zero, zero[:, :1].expand_as(zero))


def test_a_baseline_that_would_have_to_be_trained_is_refused(dataset):
    recipe = recipe_of(evaluate__baselines=["popularity", "mlp"])
    with pytest.raises(RecipeError, match=r"'mlp' is trained.+choose among .*item_knn, .*popularity"):
        evaluate(recipe, dataset, Fake(dataset, CONSTANT))


def test_a_part_without_positive_events_is_refused(tmp_path):
    dataset = tiny_dataset(tmp_path / "dataset", users=20)
    object.__setattr__(dataset.test, "label", np.zeros(len(dataset.test), np.float32))
    object.__setattr__(dataset.valid, "label", np.zeros(len(dataset.valid), np.float32))
    with pytest.raises(DataError, match="no positive event"):
        evaluate(recipe_of(), dataset, Fake(dataset, CONSTANT))
    assert validate(recipe_of(), dataset, Fake(dataset, CONSTANT), 10, 0) == {}


def test_unknown_items_and_users_count_against_the_model(tmp_path):
    dataset = tiny_dataset(tmp_path / "dataset", users=20)
    item, user = np.array(dataset.test.item), np.array(dataset.test.user)
    oracle = wanted(dataset)
    item[5:10] = 0
    user[:2] = 0
    object.__setattr__(dataset.test, "item", item)
    object.__setattr__(dataset.test, "user", user)
    scorer = Fake(dataset, lambda users, items: oracle[users, items] + (items == 0) * 9)
    report = evaluate(recipe_of(), dataset, scorer, baselines=False)
    assert report.figures["hit_rate@20"] <= 15 / 20
    assert report.figures["auc"] < 1
    assert any("5 targets are items that training does not know" in note for note in report.notes)
    assert any("2 requests are of users that training does not know" in note for note in report.notes)
