"""Trains the model of a recipe: over Ray Train, or in this process.

State of an unfinished run lives in `.NAME.run/` beside the output, with the cache key of
what it makes. The same command goes on from there; another one starts afresh.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from app.artifact import Artifact, cache_key, open_artifact, publish
from app.data.dataset import Dataset
from app.errors import MachineError, disk_errors
from app.models.base import Model, model_class
from app.models.build import build_model
from app.recipe import Recipe
from app.training.checkpoint import save_checkpoint, weights_of
from app.training.hosts import Figures, LocalHost
from app.training.loop import Loop
from app.training.state import TrainingProgress, read_progress
from app.training.watch import watching


def checkpoint_settings(recipe: Recipe) -> dict[str, Any]:
    """The recipe's part that a checkpoint depends on; validation follows the protocol of evaluation."""
    protocol = {key: recipe.part("evaluate")["evaluate"][key] for key in ("candidates", "exclude_seen")}
    return {**recipe.part("model", "train"), "evaluate": protocol}


def train(recipe: Recipe, dataset: Dataset, out: Path) -> Artifact:
    """Train and publish a checkpoint at `out`; `train.workers` = 0 stays in this process.

    An interrupted run of the same recipe and data goes on from its last checkpoint.

    Raises:
        RecipeError: a hyperparameter or setting of the model that cannot be.
        MachineError: workers that died more than `train.max_failures` times, or no GPU.
    """
    if not model_class(recipe.model.name).learns:
        return _publish(recipe, dataset, out, _fitted(recipe, dataset), TrainingProgress())
    folder = _run_folder(recipe, dataset, out)
    with watching(folder, recipe.train.epochs):
        if recipe.train.workers:
            from app.training.on_ray import train_on_ray

            found = train_on_ray(recipe, dataset, folder)
        else:
            found = _train_here(recipe, dataset, folder)
    return _publish_run(recipe, dataset, out, folder, found)


def fit(
    recipe: Recipe, dataset: Dataset, out: Path, report: Callable[[Figures], None] | None = None
) -> Artifact:
    """Train in this process, quietly, and publish a checkpoint at `out`: for a trial of a search.

    Args:
        report: called after each epoch with {"epoch", "loss", "seconds", validation figures};
            what it raises ends the training, and a later call goes on from there.
    """
    if not model_class(recipe.model.name).learns:
        return _publish(recipe, dataset, out, _fitted(recipe, dataset), TrainingProgress())
    folder = _run_folder(recipe, dataset, out)
    return _publish_run(recipe, dataset, out, folder, _train_here(recipe, dataset, folder, report))


def forget_run(out: Path) -> None:
    """Forget the unfinished run that would make `out`, so that training starts afresh."""
    shutil.rmtree(_run_place(out), ignore_errors=True)


def _run_place(out: Path) -> Path:
    return out.absolute().with_name(f".{out.name}.run")


def _fitted(recipe: Recipe, dataset: Dataset) -> Model:
    return build_model(recipe.model.name, recipe.model.hyperparameters, dataset)


def _train_here(
    recipe: Recipe, dataset: Dataset, folder: Path, report: Callable[[Figures], None] | None = None
) -> Path:
    if recipe.train.gpu and not torch.cuda.is_available():
        raise MachineError("there is no GPU", where="train.gpu", remedy="set train.gpu = false")
    host = LocalHost(folder, torch.device("cuda" if recipe.train.gpu else "cpu"), report)
    with disk_errors(str(folder)):
        Loop(recipe, dataset, host).run()
    found = host.latest()
    assert found is not None, "a finished run has a checkpoint"
    return found


def _run_folder(recipe: Recipe, dataset: Dataset, out: Path) -> Path:
    """The folder of the run that makes `out`, emptied if it was of another run."""
    folder = _run_place(out)
    key = cache_key("checkpoint", checkpoint_settings(recipe), _parents(dataset))
    with disk_errors(str(folder)):
        if folder.exists() and not ((folder / "key").exists() and (folder / "key").read_text() == key):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "key").write_text(key)
    return folder


def _parents(dataset: Dataset) -> dict[str, str]:
    return {"dataset": dataset.artifact.digest}


def _publish_run(recipe: Recipe, dataset: Dataset, out: Path, folder: Path, found: Path) -> Artifact:
    """Make the artefact from the best weights of a finished run, and forget the run."""
    place = read_progress(found)
    model = build_model(recipe.model.name, recipe.model.hyperparameters, dataset)
    model.load_state_dict(load_file(found / "best.safetensors"))
    artifact = _publish(recipe, dataset, out, model, place)
    shutil.rmtree(folder, ignore_errors=True)
    return artifact


def _publish(recipe: Recipe, dataset: Dataset, out: Path, model: Model, place: TrainingProgress) -> Artifact:
    parameters, size = weights_of(model)
    with publish(out, "checkpoint", checkpoint_settings(recipe), _parents(dataset)) as draft:
        hyperparameters = recipe.model.hyperparameters
        name, trained = recipe.model.name, dataset.trained
        save_checkpoint(draft.path, model, name, hyperparameters, trained, curve=place.curve)
        draft.figures.update(
            epochs=place.epoch,
            best_epoch=place.best_epoch,
            **({f"best_{recipe.train.metric}": place.best} if place.best is not None else {}),
            samples_per_second=round(place.samples / place.seconds) if place.seconds else 0,
            seconds=round(place.seconds, 3),
            resumed_from=place.resumed_from,
            parameters=parameters,
            bytes=size,
        )
    return open_artifact(out, "checkpoint", verify=False)
