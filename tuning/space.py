"""What a search may vary: models, their own SPACE, loss, training keys and compression settings.

The space is a program (define-by-run): a setting is asked for only where it has a meaning,
e.g. the number of negatives only under a loss that uses sampled ones, and the precision of dense
layers only for a model that has some. Settings are dotted recipe keys, so that those of a trial are
overrides of the recipe. The recipe's own values always belong to the space, and the first trial is
the recipe itself; then each further model is tried as it is by default. [tune.space] replaces what is tried
for a key, and may name others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

from optuna.trial import BaseTrial
from pydantic import BaseModel

from app.data.dataset import Dataset
from app.models.base import Model, ModelConfig
from app.models.build import build_model
from app.models.discovery import model_class, model_config
from app.models.resize import hidden_of, linear_layers
from app.recipe import Compress, ModelSection, Recipe, Section, Train
from app.training.defaults import settled
from tuning.suggest import MODEL, Suggest, Tried, decoded_value, encoded_value, nearest, parameter

Settings = dict[str, Any]  # dotted recipe key -> value
COMPRESSION = "compress."
LOSSES = ["bce", "bpr", "cross_entropy", "gbce"]
# Those that compare all pairs of a batch, or all items: of a model that is no inner product they would cost
# as many passes as there are.
INNER_PRODUCT = ["softmax", "sampled_softmax"]
ROWS = ["float32", "float16", "int8", "int4", "int2"]
DENSE = ["float32", "int8"]
SHARES = [0.25, 0.5, 0.75]  # of dense weights that are pruned, or of neurons that are removed
CODES = [8, 16, 32]  # of a row
COLUMNS = [0.5, 0.75]  # of a table, that svd keeps
ENOUGH_ROWS = 2048  # of the largest table, from which on codes and codewords are smaller than int8
# Sequences of steps, of those that a model can take and that train nothing; beside them the recipe's own.
# Not `low_rank`: at equal weights `neurons` keep more (docs/log.md).
STEPS = [[], ["prune"], ["neurons"], ["svd"], ["product"], ["prune", "product"], ["neurons", "product"]]
SMALLEST_BATCH = 32
FOUND_BATCHES = (128, 512, 2048)
OWN_NEGATIVES, SHARED_NEGATIVES = (1, 32), (32, 1024)  # of each event; of all targets of a batch together


@dataclass(frozen=True)
class Space:
    """The settings around a recipe.

    Args:
        recipe: what is searched around; it names a model.
        models: names of the models to search over, the first one first tried.
        dense: those of them that have dense layers.
        hidden: those of them that have hidden neurons which can be removed.
        codes: whether a table is so large that product codes, or fewer columns and a basis, are smaller.
    """

    recipe: Recipe
    models: tuple[str, ...]
    dense: frozenset[str]
    hidden: frozenset[str] = frozenset()
    codes: bool = True

    @classmethod
    def around(cls, recipe: Recipe, dataset: Dataset, models: Collection[str] = ()) -> Space:
        """The space of a recipe for a data set, over these models; of none the recipe's own.

        Raises:
            RecipeError: a model or a hyperparameter of it is unknown.
        """
        names = sorted(
            dict.fromkeys(models or [recipe.model.name]), key=lambda name: name != recipe.model.name
        )
        learned = {name: learned_model(of_model(recipe, name), dataset) for name in names}
        dense = (name for name, model in learned.items() if model and linear_layers(model))
        hidden = (name for name, model in learned.items() if model and hidden_of(model))
        codes = max(dataset.schema.users, dataset.schema.items) >= ENOUGH_ROWS
        return cls(recipe, tuple(names), frozenset(dense), frozenset(hidden), codes)

    def suggest(self, trial: BaseTrial) -> Settings:
        """Settings of a trial: overrides of the recipe."""
        model, chosen = self.models[0], Settings()
        if len(self.models) > 1:
            model = chosen[MODEL] = trial.suggest_categorical(MODEL, self.models)
        (kind, config), recipe = self._kinds[model], of_model(self.recipe, model)
        suggest = Suggest(trial, model, self._given)
        for name, tried in kind.SPACE.items():
            suggest.any(f"model.{name}", tried, getattr(config, name))
        if kind.learns:
            _loss(suggest, self.recipe, kind, config)
            loss = suggest.settings.get("model.loss", config.loss)
            _training(suggest, recipe.train, kind, draws=_draws(loss, kind))
        takes = {
            "prune": model in self.dense,
            "neurons": model in self.hidden,
            "svd": self.codes and kind.quantisable,
            "product": self.codes and kind.quantisable,
        }
        _compression(suggest, recipe.compress, kind, takes)
        _further(suggest, config)
        return chosen | suggest.settings

    def own(self, model: str) -> Settings:
        """The settings of the recipe with a model, under every name that `suggest` may ask for.

        Where [tune.space] leaves the recipe's own value out, what comes nearest to it stands there.
        """
        _, config = self._kinds[model]
        sections = {
            "model": config,
            "train": of_model(self.recipe, model).train,
            "compress": self.recipe.compress,
        }
        leaves = dict(leaf for name, section in sections.items() for leaf in _leaves(name, section))
        given = {key: nearest(leaves[key], tried) for key, tried in self._given.items() if key in leaves}
        return {MODEL: model, **leaves, **given}

    def encoded(self, settings: Settings) -> dict[str, Any]:
        """A study's parameters of settings."""
        model = settings.get(MODEL, self.models[0])
        return {parameter(name, model): encoded_value(value) for name, value in settings.items()}

    @cached_property
    def _given(self) -> dict[str, Tried]:
        return self.recipe.tune.searched()

    @cached_property
    def _kinds(self) -> dict[str, tuple[type[Model], ModelConfig]]:
        """Of each model its class and its hyperparameters as the recipe has them."""
        kinds = {}
        for name in self.models:
            section = of_model(self.recipe, name).model
            kinds[name] = model_class(section.source), model_config(section.source, section.hyperparameters)
        return kinds


def _leaves(name: str, section: BaseModel) -> Iterator[tuple[str, Any]]:
    """The keys of a table and of the tables within it, dotted, with their values."""
    for key, value in section:
        if isinstance(value, Section):
            yield from _leaves(f"{name}.{key}", value)
        else:
            yield f"{name}.{key}", value


def of_model(recipe: Recipe, name: str) -> Recipe:
    """The recipe with a model, and the settings of [train] that suit it and that the recipe does not set.

    Another model than its own has the hyperparameters that are its default.
    """
    if name != recipe.model.name:
        recipe = recipe.model_copy(update={"model": ModelSection(name=name)})
    return settled(recipe)


def changed(recipe: Recipe, settings: Settings) -> Recipe:
    """The recipe with the settings of a trial."""
    others = {name: value for name, value in settings.items() if name != MODEL}
    return of_model(recipe, settings.get(MODEL, recipe.model.name)).override(others)


def decoded(params: dict[str, Any]) -> Settings:
    """Settings of a study's parameters, which hold lists as JSON text."""
    return {name.partition("@")[0]: decoded_value(value) for name, value in params.items()}


def training_part(settings: Settings) -> Settings:
    """The settings that a checkpoint depends on."""
    return {name: value for name, value in settings.items() if not name.startswith(COMPRESSION)}


def learned_model(recipe: Recipe, dataset: Dataset) -> Model | None:
    """The recipe's model as it begins; None where it is fitted in closed form.

    Raises:
        RecipeError: the model does not suit the data, or a hyperparameter of it is unknown.
    """
    model = build_model(recipe.model.source, recipe.model.hyperparameters, dataset, fit=False)
    return model if model.learns else None


def _loss(suggest: Suggest, recipe: Recipe, kind: type[Model], config: ModelConfig) -> None:
    """The loss, among those that learn to rank; one that learns logged values or labels stays."""
    if "loss" in kind.SPACE or config.loss == "mse" or not recipe.train.negatives:
        return
    known = get_args(kind.Config.model_fields["loss"].annotation)  # a model may have losses of its own
    losses = [loss for loss in (*LOSSES, *(INNER_PRODUCT if kind.retrieves else ())) if loss in known]
    suggest.choice("model.loss", losses, config.loss)


def _draws(loss: str, kind: type[Model]) -> bool:
    """Whether negatives are drawn; else they are all items, or the positives of a batch's other rows."""
    return loss != "softmax" and not (loss == "sampled_softmax" and kind.trains_on == "events")


def _training(suggest: Suggest, train: Train, kind: type[Model], *, draws: bool) -> None:
    suggest.number("train.learning_rate", 1e-4, 1e-2, own=train.learning_rate, log=True)
    suggest.choice("train.batch_size", batch_sizes(train.batch_size), train.batch_size)
    suggest.choice("train.weight_decay", [0.0, 1e-6, 1e-5, 1e-4], train.weight_decay)
    if train.table_optimizer == "rowwise_adagrad":  # "same" has no rate of its own
        suggest.number("train.table_learning_rate", 0.005, 0.3, own=train.table_learning_rate, log=True)
    if train.negatives and draws:
        low, high = OWN_NEGATIVES if kind.trains_on == "events" else SHARED_NEGATIVES
        suggest.number("train.negatives", low, high, own=train.negatives, log=True)
        suggest.choice("train.negative_sampling", ["uniform", "popularity"], train.negative_sampling)


def batch_sizes(own: int) -> list[int]:
    """Batch sizes around one that fits the log: a quarter of it to four times as many rows.

    0, which has training find one by the number of events, has some of those it may find beside it.
    """
    if not own:
        return [0, *FOUND_BATCHES]
    return sorted(
        {max(min(own, SMALLEST_BATCH), size) for size in (own // 4, own // 2, own, 2 * own, 4 * own)}
    )


def _compression(suggest: Suggest, own: Compress, kind: type[Model], takes: dict[str, bool]) -> None:
    """Settings of [compress]; `takes` says which steps the model can take."""
    if kind.quantisable:
        suggest.choice("compress.rows", ROWS, own.rows)
    if takes["prune"]:
        suggest.choice("compress.dense", DENSE, own.dense)
    left_out = {name for name, can in takes.items() if not can}
    possible = [steps for steps in STEPS if not left_out & set(steps)]
    if len(possible) < 2 and not own.steps and "compress.steps" not in suggest.given:
        return
    steps = suggest.choice("compress.steps", possible, own.steps)
    if "prune" in steps:
        suggest.choice("compress.prune.share", SHARES, own.prune.share)
    if "neurons" in steps:
        suggest.choice("compress.neurons.share", SHARES, own.neurons.share)
    if "svd" in steps:
        suggest.choice("compress.svd.columns", COLUMNS, own.svd.columns)
    if "product" in steps:
        suggest.choice("compress.product.codes", CODES, own.product.codes)


def _further(suggest: Suggest, config: ModelConfig) -> None:
    """What [tune.space] names beside what a search asks for by itself; of [compress] what has a meaning."""
    steps = suggest.settings.get("compress.steps")
    for key in suggest.given:
        section, _, name = key.partition(".")
        if key in suggest.settings or key == "compress.steps":
            continue
        if section == "model" and name.partition(".")[0] not in type(config).model_fields:
            continue  # of another model
        step = name.partition(".")[0]
        if section == "compress" and "." in name and steps is not None and step not in steps:
            continue
        suggest.suggest_given(key)
