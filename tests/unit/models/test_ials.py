"""Alternating least squares, against plain linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import app.models.least_squares as least_squares
from app.data.dataset import Array, Dataset
from app.models.base import History
from app.models.build import build_model
from app.models.ials import Ials
from app.models.item_knn import sets_of
from app.models.least_squares import conjugate_gradients
from tests.tiny import tiny_dataset

WIDTH, UNOBSERVED, PENALTY = 8, 5.0, 0.02


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny") / "dataset")


def fitted(dataset: Dataset, **hyperparameters: float) -> Ials:
    settings = {"width": WIDTH, "unobserved": UNOBSERVED, "penalty": PENALTY, "prior": 0.0}
    model = build_model("ials", {**settings, **hyperparameters}, dataset)
    assert isinstance(model, Ials)
    return model


def states_of(model: Ials, met: Array) -> torch.Tensor:
    """The states of users with these sets, a row of `met` each, without the 1 at the end."""
    length = int(met.sum(1).max())
    item = np.zeros((len(met), length), np.int64)
    for row, own in zip(item, met, strict=True):
        row[length - int(own.sum()) :] = np.flatnonzero(own)
    items, none = torch.from_numpy(item), torch.zeros(len(met), 0)
    return model.user_state(none, model.history_rows(items), History(items, items, none, none), none)[:, :-1]


def solved(met: Array, other: Array, share: float) -> Array:
    """The factors of the rows of `met`, one exact solution after the other."""
    gram = share * other.T @ other
    factors = np.zeros((len(met), other.shape[1]))
    for row, own in enumerate(met > 0):
        ridge = PENALTY * (own.sum() + share * len(other)) * np.eye(other.shape[1])
        factors[row] = np.linalg.solve(other[own].T @ other[own] + gram + ridge, other[own].sum(0))
    return factors


def objective(met: Array, user: Array, item: Array, share: float) -> float:
    scores = user @ item.T
    squares = (met * (1 - scores) ** 2).sum() + share * (scores**2).sum()
    of_user = (met.sum(1) + share * len(item)) @ (user**2).sum(1)
    of_item = (met.sum(0) + share * len(user)) @ (item**2).sum(1)
    return float(squares + PENALTY * (of_user + of_item))


def test_conjugate_gradients_solve_systems_of_any_length() -> None:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 30, 6, generator=random)
    rows[0], rows[1, 3:] = 0.0, 0.0
    diagonal, target = torch.rand(4, 6, generator=random) + 0.5, torch.randn(4, 6, generator=random)
    matrix = rows.transpose(1, 2) @ rows + torch.diag_embed(diagonal)
    solution = conjugate_gradients(rows, diagonal, target, torch.zeros(4, 6), 8)
    torch.testing.assert_close(solution, torch.linalg.solve(matrix, target), atol=1e-5, rtol=1e-4)
    assert not conjugate_gradients(rows[:1], diagonal[:1], target[:1] * 0, target[:1] * 0, 8).any()


def test_the_sweeps_reach_what_exact_ones_reach(dataset: Dataset) -> None:
    met = sets_of(dataset).toarray()
    share = UNOBSERVED * met.sum() / met.size
    item = 0.1 * np.random.default_rng(0).normal(size=(met.shape[1], WIDTH))
    item[met.sum(0) == 0] = 0.0
    for _ in range(40):
        user = solved(met, item, share)
        item = solved(met.T, user, share)
    exact = objective(met, solved(met, item, share), item, share)
    model = fitted(dataset, sweeps=40)
    scores = states_of(model, met) @ model.factor.T
    # Any basis of the same scores does: the one of their singular vectors weighs users and items alike.
    left, size, right = np.linalg.svd(scores.double().numpy(), full_matrices=False)
    user, item = left[:, :WIDTH] * size[:WIDTH] ** 0.5, right[:WIDTH].T * size[:WIDTH] ** 0.5
    reached = objective(met, solved(met, item, share), item, share)
    assert reached < 1.02 * exact
    np.testing.assert_allclose(user @ item.T, scores.numpy(), atol=1e-5)


def test_a_row_too_long_to_gather_is_solved_from_its_parts(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row then is solved exactly, so few sweeps more make the same scores."""
    met = sets_of(dataset).toarray()[:20]
    whole = fitted(dataset, sweeps=60)
    monkeypatch.setattr(least_squares, "POSITIONS", 5)
    parts = fitted(dataset, sweeps=60)
    scores = [states_of(model, met) @ model.factor.T for model in (whole, parts)]
    torch.testing.assert_close(scores[0], scores[1], atol=5e-3, rtol=0)


def test_events_count_alike_unless_recent_ones_weigh_more(dataset: Dataset) -> None:
    model = fitted(dataset)
    items, none = torch.tensor([[5, 6, 7], [7, 6, 5]]), torch.zeros(2, 0)

    def states(model: Ials) -> torch.Tensor:
        history = History(items, items, none, none)
        return model.user_state(none, model.history_rows(items), history, none)

    torch.testing.assert_close(*states(model))
    first, second = states(fitted(dataset, half_life=1.0))
    assert not torch.allclose(first, second, atol=1e-3)
