"""The search: Ray Tune runs the trials, Optuna proposes them, the journal remembers them.

prepare -> [ propose -> train or reuse -> compress -> measure -> journal ] x trials
        -> front.csv, front.png, best.toml
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import optuna

from app import pipeline
from app.artifact import Artifact, cache_key
from app.errors import DataError, MachineError
from app.files import AlreadyLocked, locked
from app.models.discovery import model_config
from app.ray.session import shared_session
from app.recipe import Recipe
from app.terminal.console import say
from app.training.train import STAGE_VERSION, checkpoint_settings
from tuning import budget as budgets
from tuning.front import Point, front
from tuning.journal import DIRECTIONS, open_journal, points
from tuning.propose import Proposer
from tuning.report import write_results
from tuning.runner import run_trials
from tuning.trial import SearchDirs


def tune(recipe: Recipe, out: Path, *, trials: int, budget: str = "") -> dict[str, Any]:
    """Search until the journal of `out` holds `trials` finished trials, and choose by budget.

    Finished trials of an earlier, interrupted search with the same data and settings count
    and are not run again. Writes journal.log, front.csv, front.png and best.toml.

    Args:
        recipe: searched around; its own settings are the first trial.
        out: folder of the search, with data set and checkpoints; on a cluster, shared storage.
        trials: finished trials in all.
        budget: e.g. "p95_ms<=8, mb<=20"; empty: the best quality.

    Returns:
        journal, study, trials, reused, failed, metric, front and best (settings and figures),
        within_budget, and the paths of the files written.

    Raises:
        RecipeError: of the recipe or the budget.
        MachineError: another search runs in `out`.
    """
    out = out.absolute()
    limits = budgets.parse(budget, recipe.train.metric)
    model_config(recipe.model.source, recipe.model.hyperparameters)
    with _alone(out), shared_session():
        dataset = pipeline.prepare(recipe, out)
        _refuse_empty(dataset)
        study = open_journal(out / "journal.log", study_name(recipe, dataset.digest))
        failed = _search(recipe, SearchDirs(out), study, trials)
    finished = points(study)
    best, within = budgets.choose(finished, limits)
    files = write_results(recipe, out, finished, best, limits)
    _conclude(best, within, budget)
    return {
        "journal": str(out / "journal.log"),
        "study": study.study_name,
        "trials": len(finished),
        "reused": sum(p.reused for p in finished),
        "failed": failed,
        "metric": recipe.train.metric,
        "front": [_described(p) for p in front(finished)],
        "best": _described(best),
        "within_budget": within,
        **{name: str(path) for name, path in files.items()},
    }


def study_name(recipe: Recipe, dataset: str) -> str:
    """Name of the study: the recipe's, and a digest of all that a trial's figures depend on."""
    settings = {
        **checkpoint_settings(recipe),
        **recipe.part("evaluate", "compress"),
        "tune": [recipe.tune.epochs, recipe.tune.max_users],
    }
    return f"{recipe.name}-{cache_key('study', settings, {'dataset': dataset}, STAGE_VERSION)[:12]}"


def _search(recipe: Recipe, dirs: SearchDirs, study: optuna.Study, trials: int) -> int:
    """Run what is missing; returns how many trials failed."""
    finished = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if finished:
        say(f"tune: {len(finished)} of {trials} trials are in the journal")
    if len(finished) >= trials:
        return 0
    shutil.rmtree(dirs.trials, ignore_errors=True)  # of trials that were cut off
    return run_trials(recipe, dirs, study, Proposer(recipe, finished, DIRECTIONS), trials)


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


def _conclude(best: Point, within: bool, budget: str) -> None:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in best.figures().items())
    if within:
        say(f"tune: chosen is trial {best.trial} ({figures})")
    else:
        say(f"tune: no trial keeps the budget {budget!r}; the nearest is trial {best.trial} ({figures})")


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
