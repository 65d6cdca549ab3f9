"""Trains the model of a recipe: over Ray Train, or in this process.

State of an unfinished run lives in `.NAME.run/` beside the output, with the cache key of what it makes.
The same command goes on from there; another one begins a new run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from app.artifact import Artifact, open_artifact, publish
from app.data.dataset import Dataset
from app.errors import MachineError, disk_errors
from app.models.base import Model
from app.models.discovery import model_class
from app.models.rows import average_unknown
from app.recipe import Recipe
from app.training.checkpoint import save_checkpoint, weights_of
from app.training.defaults import settled
from app.training.hosts import Figures, LocalHost
from app.training.loop import Loop
from app.training.progress import showing_progress
from app.training.state import BEST, TrainingProgress, read_progress
from app.training.task import STAGE_VERSION, Conversion, Objective, Task, Weights

InitialWeights = Path | Mapping[str, Tensor] | None


def task_of(
    recipe: Recipe,
    dataset: Dataset,
    epochs: int | None = None,
    objective: Objective | None = None,
    weights: InitialWeights = None,
    conversion: Conversion | None = None,
) -> Task:
    """What `train` makes a checkpoint from, given the same arguments."""
    initial = None if weights is None else Weights.of(weights)
    return Task(settled(recipe), dataset, epochs, objective, initial, conversion)


def checkpoint_key(recipe: Recipe, dataset: Dataset, epochs: int | None = None) -> str:
    """The cache key of the checkpoint that `train` or `fit` makes from the same arguments."""
    return task_of(recipe, dataset, epochs).key


def train(
    recipe: Recipe,
    dataset: Dataset,
    out: Path,
    *,
    epochs: int | None = None,
    label: str = "train",
    objective: Objective | None = None,
    weights: InitialWeights = None,
    conversion: Conversion | None = None,
) -> Artifact:
    """Train and publish a checkpoint at `out`; `train.workers` = 0 stays in this process.

    An interrupted run of the same recipe, data, objective, weights and conversion goes on from its last
    checkpoint.

    Args:
        epochs: stop after so many, with the learning rates of train.epochs; None: train.epochs.
        label: of the progress shown.
        objective: what training minimises; None: the model's own loss.
        weights: a checkpoint, a safetensors file or a state dict to begin with, which the result is never
            worse than on validation; None: random weights.
        conversion: a change of the model before training, whose parameters are then among the weights.

    Raises:
        RecipeError: a hyperparameter or setting of the model that cannot be, or a loss that became NaN.
        ArtifactError: weights that cannot be read or do not fit.
        MachineError: workers that died more than `train.max_failures` times, or no GPU.
    """
    task = task_of(recipe, dataset, epochs, objective, weights, conversion)
    if not model_class(recipe.model.source).learns:
        return _publish(task, out, task.new_model(), TrainingProgress())
    folder = _run_folder(task, out)
    with showing_progress(folder, epochs or task.recipe.train.epochs, label):
        if task.recipe.train.workers:
            from app.training.on_ray import train_on_ray

            latest = train_on_ray(task, folder)
        else:
            latest = _train_here(task, folder)
    return _publish_run(task, out, folder, latest)


def fit(
    recipe: Recipe,
    dataset: Dataset,
    out: Path,
    report: Callable[[Figures], None] | None = None,
    limit_s: float | None = None,
    objective: Objective | None = None,
    weights: InitialWeights = None,
    conversion: Conversion | None = None,
) -> Artifact:
    """Train in this process, quietly, and publish a checkpoint at `out`: for a trial of a search.

    Args:
        report: called after each epoch with {"epoch", "loss", "seconds", validation figures}; an
            exception from it ends the training, and a later call goes on from there.
        limit_s: seconds of training, validation apart, after which it ends at once; None: no limit.
        objective, weights, conversion: as of `train`.
    """
    task = task_of(recipe, dataset, None, objective, weights, conversion)
    if not model_class(recipe.model.source).learns:
        return _publish(task, out, task.new_model(), TrainingProgress())
    folder = _run_folder(task, out)
    return _publish_run(task, out, folder, _train_here(task, folder, report, limit_s))


def publish_untrained(recipe: Recipe, dataset: Dataset, out: Path) -> Artifact:
    """Publish the model as it is before its training at `out`, to measure what no weight has a say in."""
    task = task_of(recipe, dataset)
    return _publish(task, out, task.new_model(), TrainingProgress())


def forget_run(out: Path) -> None:
    """Remove what an unfinished run that would make `out` has left, so that training begins anew."""
    shutil.rmtree(run_folder_of(out), ignore_errors=True)


def run_folder_of(out: Path) -> Path:
    """The folder of the unfinished run that would make `out`."""
    return out.absolute().with_name(f".{out.name}.run")


def _train_here(
    task: Task,
    folder: Path,
    report: Callable[[Figures], None] | None = None,
    limit_s: float | None = None,
) -> Path:
    gpu = task.recipe.train.gpu
    if gpu and not torch.cuda.is_available():
        raise MachineError("there is no GPU", where="train.gpu", remedy="set train.gpu = false")
    host = LocalHost(folder, torch.device("cuda" if gpu else "cpu"), report)
    with disk_errors(str(folder)):
        Loop(task, host, limit_s).run()
    latest = host.latest()
    assert latest is not None, "a finished run has a checkpoint"
    return latest


def _run_folder(task: Task, out: Path) -> Path:
    """The folder of the run that makes `out`, emptied if it was of another run."""
    folder, key = run_folder_of(out), task.key
    with disk_errors(str(folder)):
        if folder.exists() and not ((folder / "key").exists() and (folder / "key").read_text() == key):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "key").write_text(key)
    return folder


def _publish_run(task: Task, out: Path, folder: Path, latest: Path) -> Artifact:
    """Make the artefact from the best weights of a finished run, and remove the run's folder."""
    model = task.new_model()
    model.load_state_dict(load_file(latest / BEST))
    average_unknown(model)
    artifact = _publish(task, out, model, read_progress(latest))
    shutil.rmtree(folder, ignore_errors=True)
    return artifact


def _publish(task: Task, out: Path, model: Model, progress: TrainingProgress) -> Artifact:
    parameters, size = weights_of(model)
    section, metric = task.recipe.model, task.recipe.train.metric
    measured = {f"best_{metric}": progress.best, f"initial_{metric}": progress.initial}
    with publish(out, "checkpoint", task.settings, task.parents, STAGE_VERSION) as draft:
        save_checkpoint(
            draft.path,
            model,
            section.name,
            section.hyperparameters,
            task.dataset.trained,
            curve=progress.curve,
        )
        draft.figures.update(
            epochs=progress.epoch,
            best_epoch=progress.best_epoch,
            **{name: figure for name, figure in measured.items() if figure is not None},
            samples_per_second=round(progress.samples / progress.seconds) if progress.seconds else 0,
            seconds=round(progress.seconds, 3),
            waiting=round(progress.waited / progress.seconds, 4) if progress.seconds else 0.0,
            resumed_from=progress.resumed_from,
            parameters=parameters,
            bytes=size,
        )
    return open_artifact(out, "checkpoint", verify=False)
