"""What a search may vary: the model's own SPACE, training keys and compression settings.

The space is a program (define-by-run): a setting is asked for only where it has a meaning,
e.g. the number of negatives only under a loss that uses sampled ones. Names are dotted recipe
keys, so that a trial's settings are overrides of the recipe. The recipe's own value always
belongs to the space, and the first trial is the recipe itself.
"""

from __future__ import annotations

import json
from typing import Any

from optuna.trial import BaseTrial

from app.models.base import Model, ModelConfig
from app.models.discovery import model_class, model_config
from app.recipe import Recipe

Settings = dict[str, Any]  # dotted recipe key -> value
COMPRESSION = "compress."
ROWS = ["float32", "float16", "int8", "int4"]
DENSE = ["float32", "int8"]
PRUNE = [0.0, 0.25, 0.5, 0.75]


def suggest(trial: BaseTrial, recipe: Recipe) -> Settings:
    """Settings of a trial: overrides of the recipe.

    Raises:
        RecipeError: the recipe's model or a hyperparameter of it is unknown.
    """
    kind = model_class(recipe.model.source)
    config = model_config(recipe.model.source, recipe.model.hyperparameters)
    settings = _model(trial, kind, config)
    if kind.learns:
        loss = settings.get("model.loss", config.loss)
        settings |= _training(trial, recipe, in_batch=loss == "sampled_softmax")
    return settings | _compression(trial, recipe, kind)


def own(recipe: Recipe) -> Settings:
    """The recipe's own settings, under every name that `suggest` may ask for."""
    config = model_config(recipe.model.source, recipe.model.hyperparameters)
    sections: dict[str, Any] = {"model": config, "train": recipe.train, "compress": recipe.compress}
    return {
        f"{name}.{key}": getattr(section, key)
        for name, section in sections.items()
        for key in type(section).model_fields
    }


def decoded(params: dict[str, Any]) -> Settings:
    """Settings of a study's parameters, which hold lists as JSON text."""
    return {name: _decoded(value) for name, value in params.items()}


def encoded(settings: Settings) -> dict[str, Any]:
    """A study's parameters of settings."""
    return {name: _encoded(value) for name, value in settings.items()}


def training_part(settings: Settings) -> Settings:
    """The settings that a checkpoint depends on."""
    return {name: value for name, value in settings.items() if not name.startswith(COMPRESSION)}


def _model(trial: BaseTrial, kind: type[Model], config: ModelConfig) -> Settings:
    return {
        f"model.{name}": _any(trial, f"model.{name}", space, getattr(config, name))
        for name, space in kind.SPACE.items()
    }


def _training(trial: BaseTrial, recipe: Recipe, *, in_batch: bool) -> Settings:
    train = recipe.train
    settings: Settings = {
        "train.learning_rate": _number(
            trial, "train.learning_rate", 1e-4, 1e-2, own=train.learning_rate, log=True
        ),
        "train.batch_size": _choice(trial, "train.batch_size", [512, 1024, 2048, 4096], train.batch_size),
        "train.weight_decay": _choice(
            trial, "train.weight_decay", [0.0, 1e-6, 1e-5, 1e-4], train.weight_decay
        ),
    }
    if train.table_optimizer == "rowwise_adagrad":  # "same" has no rate of its own
        name = "train.table_learning_rate"
        settings[name] = _number(trial, name, 0.005, 0.3, own=train.table_learning_rate, log=True)
    if train.negatives and not in_batch:  # the other rows of the batch are the negatives there
        settings["train.negatives"] = _number(trial, "train.negatives", 1, 8, own=train.negatives)
        choices = ["uniform", "popularity"]
        settings["train.negative_sampling"] = _choice(
            trial, "train.negative_sampling", choices, train.negative_sampling
        )
    return settings


def _compression(trial: BaseTrial, recipe: Recipe, kind: type[Model]) -> Settings:
    settings: Settings = {}
    if kind.quantisable:
        settings["compress.rows"] = _choice(trial, "compress.rows", ROWS, recipe.compress.rows)
    if kind.learns:  # a model in closed form has no dense weights
        settings["compress.dense"] = _choice(trial, "compress.dense", DENSE, recipe.compress.dense)
        settings["compress.prune"] = _choice(trial, "compress.prune", PRUNE, recipe.compress.prune)
    return settings


def _any(trial: BaseTrial, name: str, space: Any, own: Any) -> Any:
    if isinstance(space, tuple):
        low, high, *scale = space
        return _number(trial, name, low, high, own=own, log=scale == ["log"])
    return _choice(trial, name, space, own)


def _choice(trial: BaseTrial, name: str, choices: list[Any], own: Any) -> Any:
    values = choices if own in choices else [*choices, own]
    return _decoded(trial.suggest_categorical(name, [_encoded(value) for value in values]))


def _number(trial: BaseTrial, name: str, low: Any, high: Any, *, own: Any, log: bool = False) -> Any:
    low, high = min(low, own), max(high, own)
    if log and low <= 0:  # a logarithmic scale holds no 0
        log = False
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=log)
    return trial.suggest_float(name, float(low), float(high), log=log)


def _encoded(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def _decoded(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value[:1] in ("[", "{") else value
