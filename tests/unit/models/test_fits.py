"""A model in closed form is fitted once in a run, whatever reads it afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app import pipeline
from app.data.dataset import Array
from app.models import item_knn
from app.recipe import Recipe, parse
from tests.tiny import tiny_dataset

STAGES = ("train", "compress", "evaluate", "export")


def recipe(model: str, **hyperparameters: Any) -> Recipe:
    content = {"model": {"name": model, **hyperparameters}, "train": {"epochs": 1, "workers": 0}}
    return parse({"name": "fits", **content}, "test")


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that neighbours are computed."""
    calls, original = [], item_knn.neighbours

    def counted(sets: Any, count: int, shrinkage: float, **weights: float) -> tuple[Array, Array]:
        calls.append(count)
        return original(sets, count, shrinkage, **weights)

    monkeypatch.setattr(item_knn, "neighbours", counted)
    return calls


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (recipe("item_knn"), 1),  # the model is its own baseline
        (recipe("mlp"), 1),  # the baseline alone
        (recipe("item_knn", neighbours=7), 2),  # the model, and the baseline with its own settings
    ],
)
def test_neighbours_are_computed_once_for_each_of_their_settings(
    chosen: Recipe, expected: int, fits: list[int], tmp_path: Path
) -> None:
    tiny_dataset(tmp_path / "dataset")
    for name in STAGES:
        pipeline.STAGES[name](chosen, tmp_path)
    assert len(fits) == expected
    report = pipeline.STAGES["evaluate"](chosen, tmp_path).figures
    assert set(report["baselines"]) == {"popularity", "item_knn"}
    assert len(fits) == expected
    if chosen.model.name == "item_knn" and expected == 1:
        assert report["baselines"]["item_knn"]["ndcg@10"] == report["figures"]["ndcg@10"]
