"""The space: valid for every model, and only what has a meaning."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from app.models.discovery import model_class, model_config, model_names
from app.recipe import Recipe
from tuning import space

BASE = Recipe()


def sampled(recipe: Recipe, seed: int) -> space.Settings:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return space.suggest(study.ask(), recipe)


def of(model: str, **changes: Any) -> Recipe:
    return BASE.override({"model.name": model, **changes})


@pytest.mark.parametrize("name", model_names())
def test_every_draw_is_a_valid_recipe(name: str) -> None:
    recipe = of(name)
    for seed in range(20):
        changed = recipe.override(sampled(recipe, seed))
        model_config(changed.model.name, changed.model.hyperparameters)


@pytest.mark.parametrize("name", model_names())
def test_the_recipe_itself_belongs_to_the_space(name: str) -> None:
    recipe = of(name, **{"train.batch_size": 77, "train.learning_rate": 0.5, "compress.prune": 0.1})
    own = space.encoded(space.own(recipe))
    settings = space.suggest(optuna.trial.FixedTrial(own), recipe)
    assert all(settings[key] == space.own(recipe)[key] for key in settings)


@pytest.mark.parametrize("name", model_names())
def test_settings_survive_the_study(name: str) -> None:
    study = optuna.create_study()
    trial = study.ask()
    settings = space.suggest(trial, of(name))
    assert space.decoded(trial.params) == settings
    assert space.encoded(settings) == trial.params


def test_negatives_are_asked_for_where_the_loss_samples_them() -> None:
    assert "train.negatives" in sampled(of("mlp", **{"model.loss": "bce"}), 0)
    in_batch = sampled(of("mlp", **{"model.loss": "sampled_softmax"}), 0)
    logged = sampled(of("mlp", **{"train.negatives": 0}), 0)
    for settings in (in_batch, logged):
        assert "train.negatives" not in settings
        assert "train.negative_sampling" not in settings


def test_a_rate_of_the_tables_is_asked_for_where_they_have_one() -> None:
    assert "train.table_learning_rate" in sampled(BASE, 0)
    assert "train.table_learning_rate" not in sampled(of("mlp", **{"train.table_optimizer": "same"}), 0)


@pytest.mark.parametrize("name", model_names())
def test_rows_keep_their_precision_where_they_must(name: str) -> None:
    assert ("compress.rows" in sampled(of(name), 0)) == model_class(name).quantisable
    assert ("train.learning_rate" in sampled(of(name), 0)) == model_class(name).learns


def test_training_and_compression_part_ways() -> None:
    settings = {"model.width": 8, "train.negatives": 4, "compress.rows": "int8"}
    assert space.training_part(settings) == {"model.width": 8, "train.negatives": 4}
