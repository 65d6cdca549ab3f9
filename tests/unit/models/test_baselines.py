"""The two baselines against hand-worked answers and a dense computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from app.evaluation.evaluate import evaluate
from app.evaluation.requests import requests_of
from app.evaluation.scorer import ModelScorer
from app.models import item_knn
from app.models.build import build_model
from app.models.item_knn import neighbours, sets_of
from app.recipe import parse
from tests.tiny import tiny_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("baselines") / "dataset")


# Users a..d and items 1..3 (0 is unknown): 1 and 2 share two users, 3 is met by d alone.
SETS = sparse.csr_array(np.array([[0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 1, 1]], np.float32))


class TestNeighbours:
    def test_cosine_by_hand(self):
        ids, value = neighbours(SETS, 3, 0.0)
        assert ids[1].tolist() == [1, 2, 0]
        assert value[1].tolist() == pytest.approx([1, 2 / 3, 0])
        assert ids[3].tolist() == [3, 2, 0]
        assert value[3].tolist() == pytest.approx([1, 1 / np.sqrt(3), 0])
        assert not value[0].any()

    def test_shrinkage_by_hand(self):
        _, value = neighbours(SETS, 2, 1.0)
        assert value[1].tolist() == pytest.approx([3 / 4, 2 / 4])
        assert value[3].tolist() == pytest.approx([1 / 2, 1 / (np.sqrt(3) + 1)])

    def test_blocks_and_a_dense_computation_agree(self, dataset, monkeypatch):
        met = sets_of(dataset)
        dense = met.toarray()
        norm = np.maximum(np.linalg.norm(dense, axis=0), 1e-9)
        cosine = dense.T @ dense / np.outer(norm, norm)
        whole = neighbours(met, 7, 0.0)
        monkeypatch.setattr(item_knn, "PAIRS", 1)  # an item at a time
        np.testing.assert_array_equal(neighbours(met, 7, 0.0)[1], whole[1])
        np.testing.assert_allclose(whole[1][1:], np.sort(cosine, 1)[1:, ::-1][:, :7], rtol=1e-5)

    def test_repeated_events_count_once_and_only_the_last_of_a_long_user(self, dataset, monkeypatch):
        met = sets_of(dataset)
        assert set(met.data) == {1.0}
        monkeypatch.setattr(item_knn, "LONGEST", 3)
        assert sets_of(dataset).sum(1).max() == 3


class TestItemKnn:
    def test_the_score_is_the_weighted_sum_over_the_history(self, dataset):
        settings = {"neighbours": 10, "half_life": 2.0, "prior": 0.5, "shrinkage": 0.0}
        model = build_model("item_knn", settings, dataset)
        batch = requests_of(dataset, "test").batch(dataset, slice(0, 5), np.zeros((5, 0), np.int64))
        expected = 0.5 * dataset.popularity / dataset.popularity.max() * np.ones((5, 1))
        for row, history in enumerate(batch.history.item.tolist()):
            for back, item in enumerate(reversed(history)):
                ids, value = model.neighbour[item].numpy(), model.similarity[item].numpy()
                np.add.at(expected[row], ids, value * 0.5 ** (back / 2.0))
        scores = ModelScorer(model).all(batch).numpy()
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-7)

    def test_without_a_history_the_popular_items_come_first(self, dataset):
        model = build_model("item_knn", {}, dataset)
        batch = requests_of(dataset, "test").batch(dataset, slice(0, 1), np.zeros((1, 0), np.int64))
        batch.history.item.zero_()
        scores = ModelScorer(model).all(batch)[0].numpy()
        assert scores.argmax() == dataset.popularity.argmax()
        assert np.corrcoef(scores, dataset.popularity)[0, 1] == pytest.approx(1)

    def test_it_beats_popularity_where_there_are_tastes(self, dataset):
        report = evaluate(
            parse({"evaluate": {"baselines": ["popularity"]}}, "test"),
            dataset,
            ModelScorer(build_model("item_knn", {}, dataset)),
        )
        assert report.ratios["popularity"]["ndcg@10"] > 1.2

    def test_more_neighbours_than_items_is_all_items(self, dataset):
        model = build_model("item_knn", {"neighbours": 10_000}, dataset)
        assert model.neighbour.shape == (dataset.schema.items, dataset.schema.items)


def test_popularity_is_the_log_share_of_the_positive_events(dataset):
    model = build_model("popularity", {}, dataset)
    batch = requests_of(dataset, "test").batch(dataset, slice(0, 3), np.array([[1, 2, 0]] * 3))
    counts = dataset.popularity + 1.0
    expected = torch.tensor(np.log(counts / counts.sum()), dtype=torch.float32)
    torch.testing.assert_close(model(batch), expected[[1, 2, 0]].expand(3, 3))
    torch.testing.assert_close(ModelScorer(model).all(batch), expected.expand(3, -1))


@pytest.mark.parametrize("name", ["popularity", "item_knn"])
def test_a_fitted_baseline_is_its_state(dataset, name):
    model = build_model(name, {}, dataset)
    other = build_model(name, {}, dataset)
    for buffer in other.state_dict().values():
        buffer.zero_()
    other.load_state_dict(model.state_dict())
    batch = requests_of(dataset, "test").batch(dataset, slice(0, 4), np.array([[1, 2, 3]] * 4))
    torch.testing.assert_close(other(batch), model(batch))
