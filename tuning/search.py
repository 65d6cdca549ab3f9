"""The search: Ray Tune runs the trials, Optuna proposes them, the journal remembers them.

prepare -> [ propose -> train or reuse -> compress -> measure -> journal ] x trials
        -> front.csv, front.png, best.toml
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import optuna

from app import pipeline
from app.artifact import Artifact, cache_key
from app.data.dataset import Dataset
from app.errors import DataError, MachineError
from app.evaluation.evaluate import validate
from app.evaluation.scorer import ModelScorer
from app.files import AlreadyLocked, locked
from app.models.build import build_model
from app.models.discovery import model_names
from app.ray.session import shared_session
from app.recipe import Recipe
from app.recipe_check import AUTO, check_recipe
from app.terminal.console import say
from app.training.task import STAGE_VERSION, checkpoint_settings
from tuning import budget as budgets
from tuning.front import Point, front
from tuning.journal import DIRECTIONS, open_journal, points
from tuning.propose import Proposer
from tuning.results import write_results
from tuning.runner import run_trials
from tuning.space import Space
from tuning.trial import SearchDirs


def tune(recipe: Recipe, out: Path, *, trials: int, add_trials: int = 0, budget: str = "") -> dict[str, Any]:
    """Search until the journal of `out` holds `trials` finished trials, and choose by budget.

    Finished trials of an earlier, interrupted search with the same data and settings count
    and are not run again. Writes journal.log, front.csv, front.png and best.toml.

    Args:
        recipe: searched around; its own settings are the first trial, or with model.name = "auto"
            those of the model that was chosen.
        out: folder of the search, with data set and checkpoints; on a cluster, shared storage.
        trials: finished trials in all.
        add_trials: where it is not 0, so many beside those that have finished, instead of `trials` in all.
        budget: e.g. "p95_ms<=8, mb<=20"; empty: the best quality.

    Returns:
        journal, study, trials, reused, failed, metric, models, front and best (settings and figures),
        baselines (name to quality on the same users), behind (those that are better than the best),
        within_budget, next (the command that trains the best), and the paths of the files written.

    Raises:
        RecipeError: of the recipe or the budget.
        MachineError: another search runs in `out`.
    """
    out = out.absolute()
    limits = budgets.parse(budget, recipe.train.metric)
    check_recipe(recipe)
    with _alone(out), shared_session():
        dataset = pipeline.prepare(recipe, out)
        _refuse_empty(dataset)
        models = recipe.tune.models
        if recipe.model.name == AUTO:
            choice = pipeline.choose(recipe, out)
            models = models or compared(choice.figures)
            recipe = pipeline.resolved(recipe, out)
        space = Space.around(recipe, Dataset.open(out / "dataset"), models)
        baselines = _baselines(space.recipe, Dataset.open(out / "dataset"))
        study = open_journal(out / "journal.log", study_name(space, dataset.digest))
        wanted = len(points(study)) + add_trials if add_trials else trials
        failed = _search(space, SearchDirs(out), study, wanted)
    finished = points(study)
    best, within = budgets.choose(finished, limits)
    limits = [limit.among(finished) for limit in limits]
    files = write_results(space.recipe, study, out, finished, best, limits, baselines)
    behind = [name for name, quality in baselines.items() if quality > best.quality]
    _conclude(best, within, budget, space.models, behind)
    return {
        "journal": str(out / "journal.log"),
        "study": study.study_name,
        "trials": len(finished),
        "reused": sum(p.reused for p in finished),
        "failed": failed,
        "metric": recipe.train.metric,
        "models": list(space.models),
        "front": [_described(p) for p in front(finished)],
        "best": _described(best),
        "baselines": {name: round(quality, 6) for name, quality in baselines.items()},
        "behind": behind,
        "within_budget": within,
        "next": shlex.join(["rayrec", "run", str(files["best_toml"]), "--out", str(out)]),
        **{name: str(path) for name, path in files.items()},
    }


def study_name(space: Space, dataset: str) -> str:
    """Name of the study: the recipe's, and a digest of all that a trial and its figures depend on."""
    recipe = space.recipe
    settings = {
        **checkpoint_settings(recipe),
        **recipe.part("evaluate", "compress"),
        "tune": [recipe.tune.epochs, recipe.tune.max_users, space.models, sorted(space.dense)],
    }
    return f"{recipe.name}-{cache_key('study', settings, {'dataset': dataset}, STAGE_VERSION)[:12]}"


def compared(choice: Mapping[str, Any]) -> list[str]:
    """The models that auto could compare on a log, by the figures of its choice."""
    measured = [candidate["name"] for candidate in choice["candidates"] if candidate["metric"] is not None]
    return [name for name in dict.fromkeys(measured) if name in model_names()]


def _baselines(recipe: Recipe, dataset: Dataset) -> dict[str, float]:
    """The quality of the recipe's baselines, on the users that trials are measured on."""
    metric = recipe.train.metric
    qualities = {}
    for name in recipe.evaluate.baselines:
        scorer = ModelScorer(build_model(name, {}, dataset))
        qualities[name] = float(validate(recipe, dataset, scorer, recipe.tune.max_users, recipe.seed)[metric])
    if qualities:
        figures = ", ".join(f"{name} {quality:.4f}" for name, quality in qualities.items())
        say(f"tune: baselines on the same users, {metric}: {figures}")
    return qualities


def _search(space: Space, dirs: SearchDirs, study: optuna.Study, trials: int) -> int:
    """Run what is missing; returns how many trials failed."""
    finished = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if finished:
        say(f"tune: {len(finished)} of {trials} trials are in the journal")
    if len(finished) >= trials:
        return 0
    shutil.rmtree(dirs.trials, ignore_errors=True)  # of trials that were cut off
    return run_trials(space.recipe, dirs, study, Proposer(space, finished, DIRECTIONS), trials)


def _refuse_empty(dataset: Artifact) -> None:
    if not dataset.figures.get("valid"):
        raise DataError(
            "the validation part is empty, and a search chooses by it",
            where=str(dataset.path),
            remedy="give [split] a validation share",
        )


def _described(point: Point) -> dict[str, Any]:
    figures = {name: round(value, 6) for name, value in point.figures().items()}
    return {"trial": point.trial, **figures, "reused": point.reused, "settings": point.settings}


def _conclude(best: Point, within: bool, budget: str, models: Sequence[str], behind: list[str]) -> None:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in best.figures().items())
    if within:
        say(f"tune: chosen is trial {best.trial} ({figures})")
    else:
        say(f"tune: no trial keeps the budget {budget!r}; the nearest is trial {best.trial} ({figures})")
    if behind:
        further = [name for name in behind if name not in models]
        remedy = f"--set 'tune.models={json.dumps([*models, *further])}'" if further else "more --trials"
        say(f"tune: {' and '.join(behind)} ranked better on the same users; try {remedy}")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder of a search for the block.

    Raises:
        MachineError: another process searches in it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(out / "tune.lock", wait=False))
        except AlreadyLocked:
            raise MachineError(
                "another search is running here",
                where=str(out),
                remedy="wait for it, or choose another --out",
            ) from None
        yield
