"""One trial, a plain function: train or reuse, compress, validate, export, measure.

It runs in a Ray worker and never raises: an error comes back as a figure, so that one bad
combination of settings does not end the search.
"""

from __future__ import annotations

import math
import shutil
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from app.artifact import Artifact, reuse
from app.bundle.export.export import export
from app.compression.compress import compress
from app.data.dataset import Dataset
from app.errors import RayRecError
from app.evaluation.scorer import ModelScorer
from app.evaluation.validate import validate
from app.files import locked
from app.models.discovery import model_class
from app.recipe import Recipe
from app.recipe_check.compression import LEARNING
from app.training.checkpoint import Checkpoint, load_checkpoint
from app.training.train import checkpoint_key, fit, forget_run, publish_untrained, train
from tuning.points import Point
from tuning.space import Settings, changed
from tuning.trials.dirs import SearchDirs
from tuning.trials.halving import Halving, Stopped, rungs
from tuning.trials.latency import latency


def run_trial(settings: Settings, recipe: Recipe, dirs: SearchDirs) -> dict[str, Any]:
    """Figures of one trial.

    Returns:
        quality (float), p95_ms (float), p95_range (its interval), bytes (int), reused (bool), checkpoint
        (its key; "" where training was stopped), stopped (the epoch after which it was, 0: it was not) and
        seconds; or failed (str), what went wrong, and by_user (bool), whether a user can mend it.
    """
    start = time.monotonic()
    folder = dirs.trials / uuid.uuid4().hex
    try:
        figures = _figures(trial_recipe(recipe, settings), settings, dirs, folder)
    except RayRecError as error:
        return {"failed": str(error), "by_user": error.exit_code == 1}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}", "by_user": False}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {**figures, "seconds": time.monotonic() - start}


def trial_recipe(recipe: Recipe, settings: Settings) -> Recipe:
    """The recipe as a trial runs it, for as many epochs as [tune] says.

    It trains in its own process, which is quicker; over Ray Train where several workers are asked for.
    """
    shorter = {"train.epochs": recipe.tune.epochs} if recipe.tune.epochs else {}
    workers = recipe.train.workers if on_ray_train(recipe) else 0
    return changed(recipe, {**settings, **shorter, "train.workers": workers})


def on_ray_train(recipe: Recipe) -> bool:
    """Whether each trial is a job of Ray Train."""
    return recipe.train.workers > 1


def _figures(recipe: Recipe, settings: Settings, dirs: SearchDirs, folder: Path) -> dict[str, Any]:
    dataset = Dataset.open(dirs.dataset, verify=False)
    halving = partial(_halving, recipe, settings, dataset, dirs, folder / "untrained")
    try:
        source, key, reused = _trained(recipe, dataset, dirs, halving)
    except Stopped as stopped:
        point = stopped.point
        costs = {"p95_ms": point.p95_ms, "p95_range": point.p95_range, "bytes": point.bytes}
        ended = {"reused": False, "checkpoint": "", "stopped": stopped.epoch}
        return {"quality": point.quality, **costs, **ended}
    checkpoint = _compressed(recipe, dataset, source, folder)
    scorer = ModelScorer(checkpoint.model, checkpoint.rows)
    figures = validate(recipe, dataset, scorer, recipe.tune.max_users, recipe.seed)
    quality = float(figures[recipe.train.metric])
    if not math.isfinite(quality):
        raise RayRecError(f"{recipe.train.metric} is {quality}", where="trial")
    costs = _costs(_export(recipe, dataset, checkpoint, folder, figures, retrieval=False), dirs)
    return {"quality": quality, **costs, "reused": reused, "checkpoint": key, "stopped": 0}


def _halving(
    recipe: Recipe, settings: Settings, dataset: Dataset, dirs: SearchDirs, folder: Path
) -> Halving | None:
    """What stops a training that is behind, with the costs of the untrained model; None: none is stopped."""
    stops = recipe.tune.stop_early and not on_ray_train(recipe)  # whose workers tell of no epoch
    if not (stops and rungs(recipe.train.epochs) and len(dataset.valid)):
        return None
    recipe = as_untrained(recipe)
    if not model_class(recipe.model.source).learns:
        return None
    source = publish_untrained(recipe, dataset, folder / "checkpoint")
    checkpoint = _compressed(recipe, dataset, source.path, folder)
    costs = _costs(_export(recipe, dataset, checkpoint, folder, {}, retrieval=False), dirs)
    point = Point(-1, settings, 0.0, reused=False, metric=recipe.train.metric, **costs)
    return Halving(dirs.rungs, point, recipe.train.epochs)


def as_untrained(recipe: Recipe) -> Recipe:
    """The recipe whose model is as large and fast before any training as that of `recipe` in the end."""
    steps = [step for step in recipe.compress.steps if step not in LEARNING]
    student = recipe.compress.distill.student if "distill" in recipe.compress.steps else {}
    changes = {f"model.{name}": value for name, value in student.items()}
    return recipe.override({**changes, "compress.steps": steps})


def _costs(bundle: Artifact, dirs: SearchDirs) -> dict[str, Any]:
    p95_ms, low, high = latency(bundle.path, dirs)
    return {"p95_ms": p95_ms, "p95_range": (low, high), "bytes": bundle.bytes}


def trial_bundle(recipe: Recipe, dirs: SearchDirs, folder: Path) -> Artifact:
    """The bundle of a trial as it would be served, below `folder`; what was trained is taken from there.

    Args:
        recipe: of the trial, by `trial_recipe`.
    """
    dataset = Dataset.open(dirs.dataset, verify=False)
    source, _, _ = _trained(recipe, dataset, dirs, lambda: None)
    checkpoint = _compressed(recipe, dataset, source, folder)
    return _export(recipe, dataset, checkpoint, folder, {}, retrieval=True)


def _compressed(recipe: Recipe, dataset: Dataset, source: Path, folder: Path) -> Checkpoint:
    compress(recipe, dataset, source, folder / "compressed", judge=False)
    return load_checkpoint(folder / "compressed", dataset)


def _export(
    recipe: Recipe,
    dataset: Dataset,
    checkpoint: Checkpoint,
    folder: Path,
    figures: dict[str, Any],
    *,
    retrieval: bool,
) -> Artifact:
    parents = {"checkpoint": checkpoint.artifact.digest}
    settings = recipe.part("export", "compress")
    target = folder / "bundle"
    return export(recipe, dataset, checkpoint, target, settings, parents, figures, retrieval=retrieval)


def _trained(
    recipe: Recipe, dataset: Dataset, dirs: SearchDirs, halving: Callable[[], Halving | None]
) -> tuple[Path, str, bool]:
    """The checkpoint of the recipe's training settings, its cache key, and whether it was there before.

    Of two trials with equal training settings one trains and the other waits for it.

    Args:
        halving: makes what is called after each epoch; asked only where there is something to train.

    Raises:
        Stopped: the training is behind that of other trials.
    """
    key = checkpoint_key(recipe, dataset)
    folder = dirs.checkpoint(key)
    with locked(folder.with_suffix(".lock")):
        existing = reuse(folder, "checkpoint", key)
        if existing is None:
            _train(recipe, dataset, folder, halving)
    return folder, key, existing is not None


def _train(recipe: Recipe, dataset: Dataset, folder: Path, halving: Callable[[], Halving | None]) -> None:
    if on_ray_train(recipe):
        train(recipe, dataset, folder)
        return
    try:
        fit(recipe, dataset, folder, report=halving())
    except Stopped:
        forget_run(folder)
        raise
