"""Dense layers that become smaller: what is exact stays exact, and what was changed is loaded and served."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from app.bundle.export.export import export
from app.bundle.request.requests import Context, RankRequest
from app.bundle.runtime import Ranker
from app.compression.compress import compress
from app.compression.observe import observe
from app.compression.steps import apply_step
from app.compression.work import Work
from app.data.dataset import Dataset
from app.errors import DataError, RecipeError
from app.evaluation.scorer import ModelScorer
from app.models.build import build_model
from app.models.resize import hidden_of, linear_layers
from app.recipe import Recipe, parse
from app.training.checkpoint import load_checkpoint
from app.training.train import fit
from tests.bundles import NOW, random_model, requests_batch
from tests.tiny import tiny_dataset

SMALL = {"steps": ["neurons", "low_rank"], "low_rank": {"energy": 0.8}, "rows": "float32"}


def recipe(model: str, **changes: Any) -> Recipe:
    train = {"epochs": 1, "workers": 0, "batch_size": 128}
    return parse({"model": {"name": model}, "train": train} | changes, "test")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("dense") / "dataset", users=100, items=40, events=1000)


def work_on(name: str, dataset: Dataset, folder: Path, **settings: Any) -> Work:
    source = cast(Any, SimpleNamespace(name=name))
    model = random_model(name, dataset)
    return Work(recipe(name, compress=settings), dataset, source, folder, model, {})


def scores(work: Work, dataset: Dataset) -> torch.Tensor:
    items = np.arange(1, 41)[None].repeat(3, 0)
    return ModelScorer(work.model).candidates(requests_batch(dataset, [1, 5, 9], items))


@pytest.mark.parametrize("name", ["mlp", "neumf", "deepfm", "dlrm", "dcn", "sasrec"])
def test_neurons_that_say_nothing_are_the_ones_removed(name: str, dataset: Dataset, tmp_path: Path) -> None:
    work = work_on(name, dataset, tmp_path, neurons={"share": 0.25})
    layers, rng = linear_layers(work.model), np.random.default_rng(0)
    with torch.no_grad():
        for hidden in hidden_of(work.model):
            reader = layers[hidden.reader]
            unread = rng.choice(reader.in_features, reader.in_features // 4, replace=False)
            reader.weight[:, torch.from_numpy(unread)] = 0
    before, weights = scores(work, dataset), sum(p.numel() for p in work.model.parameters())
    figures = apply_step("neurons", work)["neurons"]
    torch.testing.assert_close(scores(work, dataset), before, atol=1e-4, rtol=1e-4)
    assert figures["after"] < figures["before"]
    assert sum(p.numel() for p in work.model.parameters()) < weights
    assert all(after == round(0.75 * count) for count, after in figures["layers"].values())


def test_a_neuron_that_is_always_the_same_leaves_its_mean(dataset: Dataset, tmp_path: Path) -> None:
    work = work_on("mlp", dataset, tmp_path, neurons={"share": 0.5})
    source, reader = (work.model.get_submodule(f"layers.{number}") for number in (1, 3))
    assert isinstance(source, nn.Linear) and isinstance(reader, nn.Linear)
    with torch.no_grad():  # half of the neurons between them are constant, and large
        half = source.out_features // 2
        source.weight[:half], source.bias[:half] = 0, 3.0
    wanted = scores(work, dataset)
    only = [hidden for hidden in hidden_of(work.model) if hidden.reader == "layers.3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.compression.steps.neurons.hidden_of", lambda _: only)
        apply_step("neurons", work)
    torch.testing.assert_close(scores(work, dataset), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "sasrec"])
def test_layers_of_low_rank_become_their_factors(name: str, dataset: Dataset, tmp_path: Path) -> None:
    work = work_on(name, dataset, tmp_path, low_rank={"energy": 0.9999})
    with torch.no_grad():
        for layer in linear_layers(work.model).values():
            if min(layer.weight.shape) > 8:
                left, right = torch.randn(layer.out_features, 3), torch.randn(3, layer.in_features)
                layer.weight.copy_(left @ right * 0.05)
    before = scores(work, dataset)
    figures = apply_step("low_rank", work)["low_rank"]
    spread = float(before.std())
    torch.testing.assert_close(scores(work, dataset), before, atol=0.05 * spread, rtol=0.02)
    assert figures["after"] < figures["before"] / 2 and set(figures["ranks"].values()) <= {1, 2, 3}


def test_factors_err_less_where_inputs_are_than_those_of_the_weights_alone(
    dataset: Dataset, tmp_path: Path
) -> None:
    work = work_on("neumf", dataset, tmp_path, low_rank={"energy": 0.7})
    observed, layers = observe(work), linear_layers(work.model)
    ranks = apply_step("low_rank", work)["low_rank"]["ranks"]
    for name, rank in ranks.items():
        weight, moments = layers[name].weight.detach().double(), observed[name].moments
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        plain = (left[:, :rank] * values[:rank]) @ right[:rank]
        narrow, wide = (cast(nn.Linear, layer) for layer in work.model.get_submodule(name).children())
        aware = (wide.weight @ narrow.weight).detach().double()
        errors = [float(((w - weight) @ moments @ (w - weight).T).trace()) for w in (aware, plain)]
        assert errors[0] <= errors[1] * (1 + 1e-6)


@pytest.mark.parametrize("name", ["mlp", "sasrec"])
def test_what_was_made_smaller_is_trained_further_loaded_and_served(
    name: str, dataset: Dataset, tmp_path: Path
) -> None:
    steps = SMALL | {"steps": [*SMALL["steps"], "finetune"], "finetune": {"epochs": 1}}
    settled = recipe(name, compress=steps)
    source = fit(settled, dataset, tmp_path / "checkpoint").path
    checkpoint = load_checkpoint(compress(settled, dataset, source, tmp_path / "small").path, dataset)
    plain = load_checkpoint(source, dataset)
    sizes = {}
    for kind, exported in (("plain", plain), ("small", checkpoint)):
        export(settled, dataset, exported, tmp_path / kind / "bundle", {}, {}, {})
        sizes[kind] = max(file.stat().st_size for file in (tmp_path / kind).rglob("[mu]*.onnx"))
    assert sizes["small"] < sizes["plain"]
    items = np.arange(1, 41)[None]
    expected = ModelScorer(checkpoint.model, checkpoint.rows).candidates(requests_batch(dataset, [5], items))
    request = RankRequest("u5", [f"i{i}" for i in items[0]], context=Context(float(NOW)))
    (answer,) = Ranker.open(tmp_path / "small/bundle").rank([request])
    served = {scored.item: scored.score for scored in answer.items}
    np.testing.assert_allclose([served[f"i{i}"] for i in items[0]], expected[0].numpy(), atol=1e-4)


@pytest.mark.parametrize(("name", "step"), [("two_tower", "neurons"), ("bilinear", "low_rank")])
def test_a_model_without_such_layers_names_the_step(
    name: str, step: str, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=rf"{name} .*'{step}'"):
        apply_step(step, work_on(name, dataset, tmp_path))


@pytest.mark.parametrize("step", ["neurons", "low_rank"])
def test_a_diverged_model_is_named_by_its_layer(step: str, dataset: Dataset, tmp_path: Path) -> None:
    work = work_on("mlp", dataset, tmp_path)
    with torch.no_grad():
        linear_layers(work.model)["layers.1"].weight[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"dense layer layers\.1: .*learning_rate"):
        apply_step(step, work)


def test_sizes_of_layers_that_there_are_not_are_refused(dataset: Dataset) -> None:
    with pytest.raises(RecipeError, match=r"no dense layer 'layers\.9' - it has user_half, "):
        build_model("mlp", {"resized": {"layers.9": {"outputs": 4}}}, dataset)
