"""The space: valid for every model, and only what has a meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from app.data.dataset import Dataset
from app.errors import RecipeError
from app.models.discovery import model_class, model_config, model_names
from app.recipe import Recipe
from app.recipe_check import check_recipe
from tests.tiny import tiny_dataset
from tuning import space
from tuning.space import Space
from tuning.tune import compared

BASE = Recipe().override({"model.name": "mlp", "train.batch_size": 1024})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    yield tiny_dataset(tmp_path_factory.mktemp("space") / "dataset")


def around(recipe: Recipe, *models: str) -> Space:
    names = models or (recipe.model.name,)
    return Space(recipe, names, frozenset(name for name in names if "hidden" in model_class(name).SPACE))


def sampled(recipe: Recipe, seed: int, *models: str) -> space.Settings:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return around(recipe, *models).suggest(study.ask())


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
    recipe = of(name, **{"train.batch_size": 77, "train.learning_rate": 0.5, "compress.prune.share": 0.1})
    wanted = around(recipe)
    settings = wanted.suggest(optuna.trial.FixedTrial(wanted.encoded(wanted.own(name))))
    assert all(settings[key] == wanted.own(name)[key] for key in settings)


@pytest.mark.parametrize("name", model_names())
def test_settings_survive_the_study(name: str) -> None:
    study = optuna.create_study()
    for wanted in (around(of(name)), around(of(name), name, "mlp", "two_tower")):
        trial = study.ask()
        settings = wanted.suggest(trial)
        assert space.decoded(trial.params) == settings
        assert wanted.encoded(settings) == trial.params


def test_negatives_are_asked_for_where_the_loss_samples_them() -> None:
    assert "train.negatives" in sampled(of("mlp", **{"model.loss": "bce"}), 0)
    for seed in range(30):
        settings = sampled(of("two_tower"), seed)
        in_batch = settings["model.loss"] in ("sampled_softmax", "softmax")
        assert ("train.negatives" in settings) == ("train.negative_sampling" in settings) == (not in_batch)
    shared = [sampled(of("sasrec", **{"model.loss": "bce"}), seed) for seed in range(20)]
    drawn = [settings["train.negatives"] for settings in shared if "train.negatives" in settings]
    assert drawn and all(32 <= count <= 1024 for count in drawn), "they serve all targets of a batch"
    logged = sampled(of("mlp", **{"train.negatives": 0}), 0)
    assert not {"train.negatives", "train.negative_sampling", "model.loss"} & set(logged)


def test_a_rate_of_the_tables_is_asked_for_where_they_have_one() -> None:
    assert "train.table_learning_rate" in sampled(BASE, 0)
    assert "train.table_learning_rate" not in sampled(of("mlp", **{"train.table_optimizer": "same"}), 0)


@pytest.mark.parametrize("name", model_names())
def test_rows_keep_their_precision_where_they_must(name: str) -> None:
    assert ("compress.rows" in sampled(of(name), 0)) == model_class(name).quantisable
    assert ("train.learning_rate" in sampled(of(name), 0)) == model_class(name).learns


def losses(recipe: Recipe) -> set[str]:
    return {sampled(recipe, seed)["model.loss"] for seed in range(60)}


def test_the_losses_are_those_that_rank() -> None:
    assert losses(of("mlp")) == {"bce", "bpr", "cross_entropy", "gbce"}
    inner_product = {"bce", "bpr", "cross_entropy", "gbce", "sampled_softmax", "softmax"}
    assert losses(of("two_tower")) == losses(of("sasrec")) == inner_product
    assert "sampled_softmax" in losses(of("mlp", **{"model.loss": "sampled_softmax"}))  # the recipe's own
    for fixed in (of("mlp", **{"model.loss": "mse"}), of("item_knn")):
        assert "model.loss" not in sampled(fixed, 0)


@pytest.mark.parametrize(
    ("own", "sizes"),
    [
        (1024, [256, 512, 1024, 2048, 4096]),
        (48, [32, 48, 96, 192]),
        (8, [8, 16, 32]),
        (0, [0, 128, 512, 2048]),
    ],
)
def test_batch_sizes_lie_around_the_logs_own(own: int, sizes: list[int]) -> None:
    assert space.batch_sizes(own) == sizes
    drawn = {sampled(of("mlp", **{"train.batch_size": own}), seed)["train.batch_size"] for seed in range(60)}
    assert drawn == set(sizes)


@pytest.mark.parametrize(
    ("name", "dense"), [("mlp", True), ("two_tower", True), ("bilinear", False), ("item_knn", False)]
)
def test_dense_layers_are_asked_about_where_there_are_some(name: str, dense: bool, dataset: Dataset) -> None:
    settings = Space.around(of(name), dataset).suggest(optuna.create_study().ask())
    assert ("compress.dense" in settings) == dense


def steps_of(recipe: Recipe, dataset: Dataset) -> list[dict[str, object]]:
    space_around = replace(Space.around(recipe, dataset), codes=True)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    return [space_around.suggest(study.ask()) for _ in range(60)]


DENSE_STEPS = {(), ("prune",), ("svd",), ("product",), ("prune", "product")}


@pytest.mark.parametrize(
    ("name", "own", "expected"),
    [
        ("mlp", [], DENSE_STEPS | {("neurons",), ("neurons", "product")}),
        ("two_tower", [], DENSE_STEPS),  # without hidden neurons
        ("bilinear", [], {(), ("svd",), ("product",)}),
        ("bilinear", ["product", "finetune"], {(), ("svd",), ("product",), ("product", "finetune")}),
    ],
)
def test_steps_are_those_that_a_model_can_take_and_the_recipes_own(
    name: str, own: list[str], expected: set[tuple[str, ...]], dataset: Dataset
) -> None:
    drawn = steps_of(of(name, **{"compress.steps": own}), dataset)
    assert {tuple(settings["compress.steps"]) for settings in drawn} == expected  # type: ignore[call-overload]
    for settings in drawn:
        steps = settings["compress.steps"]
        assert ("compress.prune.share" in settings) == ("prune" in steps)  # type: ignore[operator]
        assert ("compress.neurons.share" in settings) == ("neurons" in steps)  # type: ignore[operator]
        assert ("compress.svd.columns" in settings) == ("svd" in steps)  # type: ignore[operator]
        assert ("compress.product.codes" in settings) == ("product" in steps)  # type: ignore[operator]


def test_codes_are_asked_about_where_a_table_is_large(dataset: Dataset, tmp_path: Path) -> None:
    assert not Space.around(of("bilinear"), dataset).codes
    larger = tiny_dataset(tmp_path / "dataset", users=2100, items=40, events=10_600)
    assert Space.around(of("bilinear"), larger).codes


def test_a_model_whose_rows_hold_ids_has_no_steps(dataset: Dataset) -> None:
    assert all("compress.steps" not in settings for settings in steps_of(of("item_knn"), dataset))


def test_models_are_searched_side_by_side(dataset: Dataset) -> None:
    wanted = Space.around(of("mlp", **{"model.width": 8}), dataset, ["item_knn", "mlp", "bilinear"])
    assert wanted.models == ("mlp", "item_knn", "bilinear")  # the recipe's own first
    assert wanted.dense == {"mlp"}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = set()
    for _ in range(40):
        settings = wanted.suggest(study.ask())
        section = space.changed(wanted.recipe, settings).model
        config = model_config(section.source, section.hyperparameters)
        assert all(
            getattr(config, key) == settings[f"model.{key}"] for key in model_class(section.name).SPACE
        )
        seen.add(section.name)
    assert seen == {"mlp", "item_knn", "bilinear"}


def test_another_model_begins_with_its_own_defaults() -> None:
    recipe = of("mlp", **{"model.width": 8, "model.hidden": [16], "train.learning_rate": 0.5})
    wanted = around(recipe, "mlp", "two_tower")
    assert wanted.own("mlp")["model.width"] == 8
    other = wanted.own("two_tower")
    assert other["model.width"] == model_config("two_tower", {}).width  # type: ignore[attr-defined]
    assert other["train.learning_rate"] == 0.5
    assert "model.hidden" not in other


def test_a_model_that_there_is_not(dataset: Dataset) -> None:
    with pytest.raises(RecipeError, match="unknown model 'mpl'"):
        Space.around(of("mlp"), dataset, ["mlp", "mpl"])
    with pytest.raises(RecipeError, match=r"tune\.models: no model 'mpl'.*did you mean 'mlp'"):
        check_recipe(of("mlp", **{"tune.models": ["item_knn", "mpl"]}))


def test_training_and_compression_part_ways() -> None:
    settings = {"model.width": 8, "train.negatives": 4, "compress.rows": "int8"}
    assert space.training_part(settings) == {"model.width": 8, "train.negatives": 4}


def test_a_search_after_auto_goes_over_what_it_could_compare() -> None:
    candidates = [
        {"name": "item_knn", "metric": 0.2},
        {"name": "mlp", "metric": 0.3},
        {"name": "two_tower", "metric": None},  # it failed
        {"name": "mlp", "metric": 0.1},  # with other settings
    ]
    assert compared({"candidates": candidates, "chosen": "mlp"}) == ["item_knn", "mlp"]


GIVEN = {
    "model": {"width": [24, 48], "dropout": {"low": 0.2, "high": 0.3}},
    "train.learning_rate": {"low": 0.001, "high": 0.01, "log": True},
    "train": {"epochs": {"low": 2, "high": 4}},
    "compress": {"rows": ["int4"], "steps": [["product"], []], "product": {"words": [64, 128]}},
}


def test_a_recipe_says_what_is_tried() -> None:
    recipe = of("mlp", **{"tune.space": GIVEN})
    check_recipe(recipe)
    draws = [sampled(recipe, seed) for seed in range(40)]
    assert {draw["model.width"] for draw in draws} == {24, 48}, "without the recipe's own 32"
    assert all(0.2 <= draw["model.dropout"] <= 0.3 for draw in draws)
    assert all(0.001 <= draw["train.learning_rate"] <= 0.01 for draw in draws)
    assert {draw["train.epochs"] for draw in draws} == {2, 3, 4}, "a key that is not searched by itself"
    assert {draw["compress.rows"] for draw in draws} == {"int4"}
    assert {json.dumps(draw["compress.steps"]) for draw in draws} == {'["product"]', "[]"}
    words = [draw.get("compress.product.words") for draw in draws]
    assert all((word in (64, 128)) == bool(d["compress.steps"]) for word, d in zip(words, draws, strict=True))
    assert {draw["model.hidden"][0] for draw in draws} > {32}, "other keys are searched as ever"
    for draw in draws:
        space.changed(recipe, draw)


def test_the_first_trial_comes_nearest_to_the_recipe() -> None:
    found = around(of("mlp", **{"tune.space": GIVEN}))
    first = found.suggest(optuna.trial.FixedTrial(found.encoded(found.own("mlp"))))
    assert (first["model.width"], first["model.dropout"], first["compress.rows"]) == (24, 0.2, "int4")
    assert first["train.learning_rate"] == 0.001


def test_a_space_of_one_model_says_nothing_of_another() -> None:
    recipe = of("mlp", **{"tune.space": {"model.hidden": [[16]]}})
    hidden = [
        draw.get("model.hidden") for draw in (sampled(recipe, s, "mlp", "two_tower") for s in range(20))
    ]
    assert {str(value) for value in hidden} == {"[16]", "None"}


@pytest.mark.parametrize(
    ("tried", "message"),
    [
        ({"data.history": [5]}, "nothing that a search varies"),
        ({"model": [1]}, "nothing that a search varies"),
        ({"model.width": []}, "there is no value to try"),
        ({"model.width": 16}, "16 is neither a list nor a range"),
        ({"model.dropout": {"low": 0.5, "high": 0.1}}, "inverted: low 0.5 exceeds high 0.1"),
        ({"model.dropout": {"low": 0.1}}, "needs the numbers low and high"),
        ({"model.dropout": {"low": 0, "high": 0.1, "log": True}}, "a logarithmic scale holds no 0"),
        ({"model.dropout": {"low": 0, "high": 0.1, "step": 2}}, "a range has no 'step'"),
        ({"model.depth": [2]}, "depth"),
        ({"model.dropout": [0.1, 1.5]}, "1.5"),
        ({"train.speed": [1]}, "speed"),
        ({"compress.rows": ["int3"]}, "int3"),
        ({"compress": {"product": {"codes": {"low": 0, "high": 8}}}}, "0"),
    ],
)
def test_a_wrong_space_is_told_with_its_key(tried: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        check_recipe(of("mlp", **{"tune.space": tried}))
    assert caught.value.where.startswith("tune.space.")
