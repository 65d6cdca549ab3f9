"""The linear model against its closed form, worked out by plain linear algebra."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

import app.models.ease as ease
from app.data.dataset import Dataset
from app.errors import DataError, RecipeError
from app.models.build import build_model
from app.models.ease import Ease
from app.models.item_knn import sets_of
from tests.tiny import tiny_dataset

RIDGE, AGAIN = 20.0, 0.7


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny") / "dataset")


def fitted(dataset: Dataset, **hyperparameters: float) -> Ease:
    model = build_model("ease", {"ridge": RIDGE, "again": AGAIN, **hyperparameters}, dataset)
    assert isinstance(model, Ease)
    return model


@pytest.mark.parametrize("rows", [1, 7, 100], ids=lambda rows: f"{rows} rows at a time")
def test_the_weights_are_those_of_the_ridge_regression(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    met = sets_of(dataset).toarray().astype(np.float64)
    inverse = np.linalg.inv(met.T @ met + RIDGE * np.eye(met.shape[1]))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, AGAIN)
    expected[0], expected[:, 0] = 0.0, 0.0
    monkeypatch.setattr(ease, "BLOCK", rows * dataset.schema.items)
    model = fitted(dataset, neighbours=dataset.schema.items)
    weights = torch.zeros(expected.shape).scatter_(1, model.neighbour.long(), model.similarity)
    np.testing.assert_allclose(weights.numpy(), expected, atol=1e-5)


def test_the_largest_weights_are_kept_in_order(dataset: Dataset) -> None:
    whole, some = fitted(dataset, neighbours=dataset.schema.items), fitted(dataset, neighbours=5)
    size = whole.similarity.abs()
    assert torch.equal(some.similarity, whole.similarity[:, :5])
    assert bool((size[:, :4] >= size[:, 1:5]).all()) and bool((some.similarity < 0).any())


def test_more_items_than_memory_allows_are_refused(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "MOST_ITEMS", 59)
    with pytest.raises(RecipeError, match="there are 60 items"):
        fitted(dataset)


def test_a_matrix_without_an_inverse_is_named() -> None:
    always_together = sparse.csr_array(np.ones((3, 2), np.float32))
    with pytest.raises(DataError, match=r"at item 2.*raise it"):
        ease._inverse(always_together, 1e-30)


def test_the_matrix_is_in_memory_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inverted in place: of 3,000 items, 36 MB, no second copy is made."""
    dataset = tiny_dataset(tmp_path / "dataset", users=50, items=3000, events=1000, content=False)
    monkeypatch.setattr(ease, "BLOCK", 1 << 16)
    tracemalloc.start()
    fitted(dataset)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    matrix = 4 * dataset.schema.items**2
    assert matrix < peak < 1.3 * matrix
