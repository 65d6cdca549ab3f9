"""The model that suits a log is chosen by comparison, within its time, and an interrupted choice goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app import pipeline
from app.artifact import Artifact
from app.data.dataset import Dataset
from app.errors import DataError, RecipeError
from app.models.dcn import Dcn
from app.recipe import Recipe, parse
from app.training import choice
from app.training.checkpoint import load_checkpoint
from app.training.defaults import Candidate, candidates, epoch_hints, fitting_batch_size, validation_users
from tests.tiny import tiny_dataset

CLOSED = [Candidate("popularity"), Candidate("item_knn")]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe(**train: Any) -> Recipe:
    settings = {"epochs": 2, "workers": 0, "batch_size": 128, **train}
    return parse({"train": settings, "evaluate": {"baselines": ["popularity"], "bootstrap": 0}}, "test")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return tiny_dataset(tmp_path / "dataset", users=100, events=2000)


def chosen(own: Recipe, folder: Path) -> Artifact:
    return pipeline.choose(own, folder)


def test_all_candidates_are_compared_and_the_chosen_one_is_trained(dataset: Dataset, tmp_path: Path) -> None:
    figures = chosen(recipe(), tmp_path).figures
    names = [row["name"] for row in figures["candidates"]]
    assert names == [candidate.name for candidate in candidates(dataset)]
    by_name = {row["name"]: row for row in figures["candidates"]}
    best = max(by_name.values(), key=lambda row: row["metric"])
    winner = by_name[figures["chosen"]]
    assert winner is best or winner["high"] >= 0
    as_good = [row for row in by_name.values() if row is best or row["high"] >= 0]
    quickest = min(row["user_ms"] for row in as_good)
    quick = [row for row in as_good if row["user_ms"] <= choice.SAME_TIME * quickest]
    assert winner is max(quick, key=lambda row: row["metric"])
    resolved = pipeline.resolved(recipe(), tmp_path)
    assert resolved.model.name == figures["chosen"]
    trained = pipeline.train(recipe(), tmp_path)
    assert load_checkpoint(trained.path, dataset).name == figures["chosen"]


def test_an_interrupted_choice_goes_on(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "candidates", lambda _: CLOSED)
    fitted: list[str] = []
    original = choice.fit

    def interrupted(own: Recipe, *arguments: Any, **options: Any) -> Artifact:
        if fitted:
            raise KeyboardInterrupt
        fitted.append(own.model.name)
        return original(own, *arguments, **options)

    monkeypatch.setattr(choice, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        chosen(recipe(), tmp_path)
    assert fitted == ["popularity"]
    again: list[str] = []

    def counted(own: Recipe, *arguments: Any, **options: Any) -> Artifact:
        again.append(own.model.name)
        return original(own, *arguments, **options)

    monkeypatch.setattr(choice, "fit", counted)
    chosen(recipe(), tmp_path)
    assert again == ["item_knn"]


def test_a_candidate_that_fails_is_left_out_with_its_reason(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "candidates", lambda _: CLOSED)
    original = choice.fit

    def fails(own: Recipe, *arguments: Any, **options: Any) -> Artifact:
        if own.model.name == "item_knn":
            raise RecipeError("cannot be", where="model.name")
        return original(own, *arguments, **options)

    monkeypatch.setattr(choice, "fit", fails)
    figures = chosen(recipe(), tmp_path).figures
    assert figures["chosen"] == "popularity"
    assert figures["candidates"][1]["metric"] is None
    assert "cannot be" in figures["candidates"][1]["failure"]


def test_where_every_candidate_fails_the_first_reason_is_said(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Artifact:
        raise RecipeError("cannot be", where="model.name")

    monkeypatch.setattr(choice, "fit", fails)
    with pytest.raises(DataError, match=r"no model could be trained .*cannot be"):
        chosen(recipe(), tmp_path)
    assert not (tmp_path / "choice").exists()


def test_time_that_is_up_leaves_the_first_candidate(dataset: Dataset, tmp_path: Path) -> None:
    figures = chosen(recipe(minutes=1e-9), tmp_path).figures
    assert figures["chosen"] == "popularity"
    assert ["no time left" in row.get("failure", "") for row in figures["candidates"]] == [
        False,
        *[True] * (len(figures["candidates"]) - 1),
    ]


def test_a_candidate_that_ranks_too_slowly_is_left_out_before_it_learns(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = Candidate("dcn")
    monkeypatch.setattr(choice, "candidates", lambda dataset: [*CLOSED, candidate])
    score_all = Dcn.score_all
    asked = []

    def slow(model: Dcn, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        asked.append(len(states))
        time.sleep(0.04 * len(states))
        return score_all(model, states, rows)

    monkeypatch.setattr(Dcn, "score_all", slow)
    figures = chosen(recipe(minutes=3 / 60), tmp_path).figures  # 100 users take four seconds
    assert "ranks all items in 0.04" in figures["candidates"][-1]["failure"]
    assert sum(asked) == choice.PROBED_USERS
    assert figures["chosen"] in {candidate.name for candidate in CLOSED}


def test_a_candidate_far_behind_ends_after_a_third_of_its_time(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Candidate("mlp", {"train.learning_rate": 1e-9, "train.table_learning_rate": 1e-9})
    monkeypatch.setattr(choice, "candidates", lambda dataset: [*CLOSED, slow])
    monkeypatch.setattr(choice, "IN_SIGHT_AFTER", 0.0)  # of any time
    own = recipe(epochs=50, patience=0)
    *closed, last = chosen(own, tmp_path).figures["candidates"]
    best = max(row["metric"] for row in closed)
    assert last["metric"] is None and f"has {best:.4f}" in last["failure"]
    assert not list((tmp_path / "candidates").glob(".mlp*"))
    monkeypatch.setattr(choice, "IN_SIGHT", 0.0)
    again = pipeline.choose(own, tmp_path, force=True).figures["candidates"][-1]
    assert again["metric"] < best / 2  # what it would have come to


def test_nothing_to_compare_by(dataset: Dataset, tmp_path: Path) -> None:
    label = np.asarray(dataset.valid.label)
    np.save(dataset.path / "valid" / "label.npy", np.zeros_like(label))
    held_out = Dataset.open(dataset.path, verify=False)
    figures = choice.choose(recipe(), held_out, tmp_path / "candidates", tmp_path / "choice", {}, {}).figures
    assert figures["chosen"] == choice.WITHOUT_VALIDATION
    assert "nothing is held out" in choice.sentence(figures)


def test_batches_fit_the_log() -> None:
    assert [fitting_batch_size(rows) for rows in (10, 12_800, 12_801, 100_000, 10**9)] == [
        64,
        64,
        128,
        512,
        4096,
    ]


def test_validation_takes_its_share() -> None:
    assert validation_users(2000, 0.2, trained_s=10.0, user_s=0.001) == 2000
    assert validation_users(2000, 0.2, trained_s=10.0, user_s=0.004) == 500
    assert validation_users(2000, 0.2, trained_s=0.1, user_s=0.1) == 250  # fewer tell nothing
    assert validation_users(100, 0.2, trained_s=0.1, user_s=0.1) == 100


def test_hints_of_the_best_epoch() -> None:
    own = parse({"train": {"epochs": 4, "learning_rate": 0.03}}, "test")
    (more,) = epoch_hints(own, {"epochs": 4, "best_epoch": 4})
    assert "train.epochs=8" in more
    (slower,) = epoch_hints(own, {"epochs": 4, "best_epoch": 1})
    assert "train.learning_rate=0.01" in slower
    assert epoch_hints(own, {"epochs": 4, "best_epoch": 2}) == []
    assert epoch_hints(own, {"epochs": 0, "best_epoch": 0}) == []  # a model in closed form
