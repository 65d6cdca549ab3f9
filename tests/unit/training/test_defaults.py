"""Settings of [train] that suit a model: where they come from, and that everything goes by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app import pipeline
from app.artifact import open_artifact
from app.data.dataset import Dataset
from app.models.discovery import model_class
from app.recipe import Recipe, parse
from app.recipe_toml import load
from app.terminal.explain import explain
from app.terminal.scaffold import init
from app.training.defaults import settled
from app.training.task import checkpoint_settings
from app.training.train import checkpoint_key, fit
from tests.tiny import tiny_dataset
from tuning.space import changed


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny") / "dataset")


@pytest.fixture(autouse=True)
def training(monkeypatch: pytest.MonkeyPatch) -> None:
    """What mlp asks for here."""
    suits = {"epochs": 2, "batch_size": 77, "table_optimizer": "same"}
    monkeypatch.setattr(model_class("mlp"), "TRAINING", suits)


def recipe(name: str = "mlp", **train: Any) -> Recipe:
    return parse({"model": {"name": name}, "train": {"workers": 0, **train}}, "test")


def test_the_model_settles_what_the_recipe_does_not_set() -> None:
    train = settled(recipe(batch_size=64)).train
    assert (train.epochs, train.batch_size, train.table_optimizer, train.workers) == (2, 64, "same", 0)
    assert settled(settled(recipe())) == settled(recipe())


def test_a_value_that_is_set_counts_even_if_it_is_the_general_default() -> None:
    assert settled(recipe(epochs=20)).train.epochs == 20


@pytest.mark.parametrize("name", ["popularity", "auto"])
def test_other_models_keep_the_general_defaults(name: str) -> None:
    assert settled(recipe(name)) == recipe(name)


def test_key_manifest_and_training_go_by_the_settled_values(dataset: Dataset, tmp_path: Path) -> None:
    artifact = fit(recipe(), dataset, tmp_path / "a")
    assert artifact.figures["epochs"] == 2
    assert checkpoint_settings(recipe())["train"]["batch_size"] == 77
    assert artifact.key == checkpoint_key(recipe(), dataset)
    assert checkpoint_key(recipe(), dataset) == checkpoint_key(recipe(epochs=2, batch_size=77), dataset)
    assert checkpoint_key(recipe(), dataset) != checkpoint_key(recipe(epochs=20), dataset)
    assert open_artifact(tmp_path / "a").key == artifact.key


def test_the_pipeline_and_a_search_go_by_them(tmp_path: Path) -> None:
    assert pipeline.resolved(recipe(), tmp_path).train.epochs == 2
    trial = changed(recipe("popularity"), {"model.name": "mlp", "train.learning_rate": 0.5})
    assert (trial.train.epochs, trial.train.learning_rate) == (2, 0.5)


def test_a_written_recipe_shows_them_and_leaves_them_open(tmp_path: Path) -> None:
    """Else the general defaults, written out, would count as set for whatever model is named later."""
    init(tmp_path, changes=["model.name=mlp", "train.patience=7"])
    text = (tmp_path / "recipe.toml").read_text()
    assert "\n# epochs = 2 " in text and '\n# table_optimizer = "same"' in text and "\npatience = 7" in text
    assert load(tmp_path / "recipe.toml").train.model_fields_set == {"patience"}


def test_explain_says_what_models_ask_for() -> None:
    assert "77 with mlp" in explain("train.batch_size")["where it is not set"]
    assert explain("model.mlp")["train.epochs"] == "2 where the recipe does not set it"
    assert "where it is not set" not in explain("train.metric")
