"""Trains the model of a recipe: over Ray Train, or in this process.

State of an unfinished run lives in `.NAME.run/` beside the output, with the cache key of what it makes.
The same command goes on from there; another one begins a new run.
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
from app.models.base import Model
from app.models.build import build_model
from app.models.discovery import model_class
from app.models.rows import average_unknown
from app.recipe import Recipe
from app.training.checkpoint import save_checkpoint, weights_of
from app.training.hosts import Figures, LocalHost
from app.training.loop import Loop
from app.training.progress import showing_progress
from app.training.state import TrainingProgress, read_progress

STAGE_VERSION = 2  # raise it when the same recipe and data come to give another checkpoint


def checkpoint_settings(recipe: Recipe, epochs: int | None = None) -> dict[str, Any]:
    """What a checkpoint depends on: parts of the recipe, and `epochs` of `train` where they are given.

    Validation follows the protocol of evaluation. `train.refit` is left out, because it makes another
    checkpoint of its own.
    """
    settings = recipe.part("model", "train")
    del settings["train"]["refit"]
    protocol = {key: recipe.part("evaluate")["evaluate"][key] for key in ("candidates", "exclude_seen")}
    return {**settings, "evaluate": protocol, **({"stop_after": epochs} if epochs else {})}


def checkpoint_key(recipe: Recipe, dataset: Dataset, epochs: int | None = None) -> str:
    """The cache key of the checkpoint that `train` or `fit` makes from the same arguments."""
    return cache_key("checkpoint", checkpoint_settings(recipe, epochs), _parents(dataset), STAGE_VERSION)


def train(
    recipe: Recipe, dataset: Dataset, out: Path, *, epochs: int | None = None, label: str = "train"
) -> Artifact:
    """Train and publish a checkpoint at `out`; `train.workers` = 0 stays in this process.

    An interrupted run of the same recipe and data goes on from its last checkpoint.

    Args:
        epochs: stop after so many, with the learning rates of train.epochs; None: train.epochs.
        label: of the progress shown.

    Raises:
        RecipeError: a hyperparameter or setting of the model that cannot be.
        MachineError: workers that died more than `train.max_failures` times, or no GPU.
    """
    if not model_class(recipe.model.source).learns:
        return _publish(recipe, dataset, out, _fitted(recipe, dataset), TrainingProgress(), epochs)
    folder = _run_folder(recipe, dataset, out, epochs)
    with showing_progress(folder, epochs or recipe.train.epochs, label):
        if recipe.train.workers:
            from app.training.on_ray import train_on_ray

            latest = train_on_ray(recipe, dataset, folder, epochs)
        else:
            latest = _train_here(recipe, dataset, folder, epochs)
    return _publish_run(recipe, dataset, out, folder, latest, epochs)


def fit(
    recipe: Recipe, dataset: Dataset, out: Path, report: Callable[[Figures], None] | None = None
) -> Artifact:
    """Train in this process, quietly, and publish a checkpoint at `out`: for a trial of a search.

    Args:
        report: called after each epoch with {"epoch", "loss", "seconds", validation figures}; an
            exception from it ends the training, and a later call goes on from there.
    """
    if not model_class(recipe.model.source).learns:
        return _publish(recipe, dataset, out, _fitted(recipe, dataset), TrainingProgress())
    folder = _run_folder(recipe, dataset, out)
    return _publish_run(recipe, dataset, out, folder, _train_here(recipe, dataset, folder, report=report))


def forget_run(out: Path) -> None:
    """Remove what an unfinished run that would make `out` has left, so that training begins anew."""
    shutil.rmtree(run_folder_of(out), ignore_errors=True)


def run_folder_of(out: Path) -> Path:
    """The folder of the unfinished run that would make `out`."""
    return out.absolute().with_name(f".{out.name}.run")


def _fitted(recipe: Recipe, dataset: Dataset) -> Model:
    return build_model(recipe.model.source, recipe.model.hyperparameters, dataset)


def _train_here(
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    epochs: int | None = None,
    report: Callable[[Figures], None] | None = None,
) -> Path:
    if recipe.train.gpu and not torch.cuda.is_available():
        raise MachineError("there is no GPU", where="train.gpu", remedy="set train.gpu = false")
    host = LocalHost(folder, torch.device("cuda" if recipe.train.gpu else "cpu"), report)
    with disk_errors(str(folder)):
        Loop(recipe, dataset, host, epochs).run()
    latest = host.latest()
    assert latest is not None, "a finished run has a checkpoint"
    return latest


def _run_folder(recipe: Recipe, dataset: Dataset, out: Path, epochs: int | None = None) -> Path:
    """The folder of the run that makes `out`, emptied if it was of another run."""
    folder = run_folder_of(out)
    key = checkpoint_key(recipe, dataset, epochs)
    with disk_errors(str(folder)):
        if folder.exists() and not ((folder / "key").exists() and (folder / "key").read_text() == key):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "key").write_text(key)
    return folder


def _parents(dataset: Dataset) -> dict[str, str]:
    return {"dataset": dataset.artifact.digest}


def _publish_run(
    recipe: Recipe, dataset: Dataset, out: Path, folder: Path, latest: Path, epochs: int | None = None
) -> Artifact:
    """Make the artefact from the best weights of a finished run, and remove the run's folder."""
    model = build_model(recipe.model.source, recipe.model.hyperparameters, dataset)
    model.load_state_dict(load_file(latest / "best.safetensors"))
    average_unknown(model)
    artifact = _publish(recipe, dataset, out, model, read_progress(latest), epochs)
    shutil.rmtree(folder, ignore_errors=True)
    return artifact


def _publish(
    recipe: Recipe,
    dataset: Dataset,
    out: Path,
    model: Model,
    progress: TrainingProgress,
    epochs: int | None = None,
) -> Artifact:
    parameters, size = weights_of(model)
    settings = checkpoint_settings(recipe, epochs)
    with publish(out, "checkpoint", settings, _parents(dataset), STAGE_VERSION) as draft:
        name, hyperparameters = recipe.model.name, recipe.model.hyperparameters
        save_checkpoint(draft.path, model, name, hyperparameters, dataset.trained, curve=progress.curve)
        draft.figures.update(
            epochs=progress.epoch,
            best_epoch=progress.best_epoch,
            **({f"best_{recipe.train.metric}": progress.best} if progress.best is not None else {}),
            samples_per_second=round(progress.samples / progress.seconds) if progress.seconds else 0,
            seconds=round(progress.seconds, 3),
            resumed_from=progress.resumed_from,
            parameters=parameters,
            bytes=size,
        )
    return open_artifact(out, "checkpoint", verify=False)
