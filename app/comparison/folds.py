"""`rayrec evaluate RECIPE --folds 5`: the recipe run once a fold, each with another part of the log to test.

What is divided follows from the split: users where it holds out users or each user's last event, events
where it draws events. Each fold is prepared, trained and evaluated on its own, as a task of Ray on one core.
A fold that is finished is an artefact, so an interrupted run goes on with those that are missing.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app import pipeline
from app.artifact import Artifact, cache_key, open_artifact, publish, reuse, verified_once
from app.data.dataset import Dataset
from app.data.ray_map import run_all
from app.data.stage import source_digests
from app.errors import DataError, RecipeError, UserError
from app.files import write_atomically
from app.ray.session import shared_session
from app.recipe import Recipe
from app.recipe_check import AUTO, check_recipe
from app.terminal.console import say

METHODS = {"user": "user", "leave_last": "user", "kfold": "kfold", "random": "kfold", "leave_random": "kfold"}
UNITS = {"user": "users", "kfold": "events"}  # that a method of folds divides
SECTIONS = ("data", "split", "features", "model", "train", "compress", "evaluate")
VERSION = 1  # raise it when the stages alike come to give another fold
Json = dict[str, Any]


@dataclass(frozen=True)
class Fold:
    """One fold: what it is made from, the folder that it works in, and the artefact that is left of it."""

    recipe: Recipe
    out: Path
    parents: dict[str, str]

    @property
    def run(self) -> Path:
        """The folder in which the fold is prepared and trained, until it is finished."""
        return self.out.with_name(f".{self.out.name}.run")

    @property
    def settings(self) -> Json:
        """What the figures depend on, beside the files."""
        return {**self.recipe.part(*SECTIONS), "stages": pipeline.VERSIONS}

    def finished(self) -> Artifact | None:
        """The artefact, if it is there and made from the same."""
        return reuse(self.out, "fold", cache_key("fold", self.settings, self.parents, VERSION))


def cross_validate(recipe: Recipe, out: Path, folds: int, *, force: bool = False) -> Json:
    """Evaluate a recipe on every fold of its log.

    Args:
        recipe: its split says whether users or events are divided.
        out: folder of a run; the folds go to `out/folds`.
        folds: how many, at least 2.
        force: whether finished folds are run again.

    Returns:
        folds, how many; over, "users" or "events"; models, that of each fold; figures {name: {mean, sd,
        folds}}, sd the standard deviation over the folds; baselines {name: {figure: mean}}; requests, of each
        fold; resumed, how many folds an earlier run had finished; seconds.

    Raises:
        RecipeError: fewer than 2 folds, or a split that has no folds.
        DataError: fewer users, or events, than folds; a fold that tests nobody.
    """
    start = time.monotonic()
    recipes = [fold_recipe(recipe, folds, fold) for fold in range(folds)]
    check_recipe(recipes[0])
    folder = out.absolute() / "folds"
    parents = source_digests(recipe)
    everyone = [
        Fold(own, folder / f"fold-{number}-of-{folds}", parents) for number, own in enumerate(recipes, 1)
    ]
    with shared_session(), verified_once():
        missing = everyone if force else [fold for fold in everyone if fold.finished() is None]
        if len(missing) < folds:
            say(f"folds: {folds - len(missing)} of {folds} were finished by an earlier run")
        if missing:
            _refuse_too_few(recipe, out, folds)
            _run(missing, folder, force=force)
        finished = [open_artifact(fold.out, "fold") for fold in everyone]
    result = {
        "folds": folds,
        "over": UNITS[recipes[0].split.method],
        **_summary([artifact.figures for artifact in finished]),
        "resumed": folds - len(missing),
        "seconds": round(time.monotonic() - start, 1),
    }
    write_atomically(folder / "folds.json", json.dumps(result, indent=1).encode() + b"\n")
    return result


def fold_recipe(recipe: Recipe, folds: int, fold: int) -> Recipe:
    """The recipe of one fold: it tests its share of the users or events, and trains in one process.

    Raises:
        RecipeError: fewer than 2 folds, or a split that has no folds.
    """
    if folds < 2:
        raise RecipeError(f"{folds} folds", where="--folds", remedy="ask for 2 or more")
    method = recipe.split.settled(recipe.data.ordered).method
    if method not in METHODS:
        raise RecipeError(
            f"a split by {method!r} has no folds: what it tests is given by the log",
            where="split.method",
            remedy='set it to "user" (folds of users) or "kfold" (folds of events)',
        )
    changes: Json = {"split.method": METHODS[method], "split.fold": fold, "split.test": 1 / folds}
    if METHODS[method] == "kfold":
        changes["split.folds"] = folds
    return recipe.override({**changes, "train.workers": 0, "train.refit": False})


def _run(folds: Sequence[Fold], folder: Path, *, force: bool) -> None:
    """Prepare folds one after another, each on all cores, then train and evaluate them side by side."""
    for fold in folds:
        if force:
            shutil.rmtree(fold.run, ignore_errors=True)
        with _named(fold):
            pipeline.prepare(fold.recipe, fold.run)
    calls = [(fold,) for fold in folds]
    for _ in run_all(run_fold, calls, "folds", str(folder), gpus=int(folds[0].recipe.train.gpu)):
        pass


def run_fold(fold: Fold) -> None:
    """Train and evaluate a fold that is prepared, publish it, and remove the folder that it worked in.

    Raises:
        UserError: as the stages; it names the fold.
    """
    with _named(fold), verified_once():
        report = _evaluated(fold.recipe, fold.run)
    with publish(fold.out, "fold", fold.settings, fold.parents, VERSION) as draft:
        for name in report.files:
            shutil.copyfile(report.path / name, draft.path / name)
        requests = json.loads((report.path / "report.json").read_bytes())["protocol"]["requests"]
        model = pipeline.resolved(fold.recipe, fold.run).model.name
        draft.figures.update(report.figures, model=model, requests=requests)
    shutil.rmtree(fold.run)


@contextmanager
def _named(fold: Fold) -> Iterator[None]:
    """Have mistakes within the block name the fold."""
    try:
        yield
    except UserError as error:
        where = f"{fold.out.name}, {error.where}" if error.where else fold.out.name
        raise type(error)(error.what, where=where, remedy=error.remedy) from error


def _evaluated(recipe: Recipe, run: Path) -> Artifact:
    """The report of a fold: the stages after `prepare`."""
    for name in [*(["choose"] if recipe.model.source == AUTO else []), "train", "compress", "evaluate"]:
        report = pipeline.STAGES[name](recipe, run)
    if not report.figures["figures"]:
        raise DataError("nobody is tested in this fold", where="split", remedy="ask for fewer --folds")
    return report


def _refuse_too_few(recipe: Recipe, out: Path, folds: int) -> None:
    """Refuse more folds than there are users or events, which the data set of the recipe tells."""
    dataset = Dataset.open(pipeline.prepare(recipe, out.absolute()).path)
    unit = UNITS[fold_recipe(recipe, folds, 0).split.method]
    if unit == "events":
        count = sum(len(part) for part in dataset.parts)
    else:
        count = len(np.unique(np.concatenate([np.unique(part.user) for part in dataset.parts])))
    if count < folds:
        raise DataError(
            f"{count} {unit} cannot be divided into {folds} folds",
            where="--folds",
            remedy=f"ask for {count} folds or fewer" if count > 1 else "a log of more users is needed",
        )


def _summary(folds: Sequence[Json]) -> Json:
    """Mean and spread of each figure that every fold has."""
    names = [
        name for name in folds[0]["figures"] if all(fold["figures"].get(name) is not None for fold in folds)
    ]
    figures = {}
    for name in names:
        values = [fold["figures"][name] for fold in folds]
        figures[name] = {"mean": statistics.mean(values), "sd": statistics.stdev(values), "folds": values}
    baselines = {
        baseline: {
            name: statistics.mean(fold["baselines"][baseline][name] for fold in folds)
            for name in names
            if all(fold["baselines"][baseline].get(name) is not None for fold in folds)
        }
        for baseline in folds[0]["baselines"]
    }
    return {
        "models": [fold["model"] for fold in folds],
        "figures": figures,
        "baselines": baselines,
        "requests": [fold["requests"] for fold in folds],
    }
