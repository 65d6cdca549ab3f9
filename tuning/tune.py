"""The search: Ray Tune runs the trials, Optuna proposes them, the journal remembers them.

prepare -> [ propose -> train or reuse -> compress -> measure -> journal ] x trials
        -> front.csv, front.png, front.html, report.md, best.toml
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import optuna

from app import pipeline
from app.artifact import Artifact, cache_key
from app.data.dataset import Dataset
from app.errors import DataError, MachineError, RecipeError
from app.evaluation.scorer import ModelScorer
from app.evaluation.validate import validate
from app.files import AlreadyLocked, locked
from app.models.build import build_model
from app.models.discovery import model_names
from app.ray.session import shared_session
from app.recipe import Recipe
from app.recipe_check import AUTO, check_recipe
from app.terminal.console import say
from app.training.task import STAGE_VERSION, checkpoint_settings
from tuning import budget as budgets
from tuning.front import Front
from tuning.propose import Proposer
from tuning.results.write import write_results
from tuning.space import Space
from tuning.trials.dirs import SearchDirs
from tuning.trials.journal import DIRECTIONS, failures, open_journal, points, ran, stopped
from tuning.trials.runner import run_trials

BASELINES = "baselines"  # attribute of a study


def search(recipe: Recipe, out: Path, *, trials: int = 0, add_trials: int = 0, budget: str = "") -> Front:
    """Search until the journal of `out` holds as many finished trials as are wanted, and choose by budget.

    Finished trials of an earlier, interrupted search with the same data and settings count
    and are not run again. Writes journal.log, and the files of the front.

    Args:
        recipe: searched around; its own settings are the first trial, or with model.name = "auto"
            those of the model that was chosen.
        out: folder of the search, with data set and checkpoints; on a cluster, shared storage.
        trials: trials in all, finished or stopped early; 0: tune.trials.
        add_trials: where it is not 0, so many beside those that have run, instead of `trials` in all.
        budget: e.g. "p95_ms<=8, mb<=20"; empty: tune.budget, and where that is empty the best quality.

    Raises:
        RecipeError: of the recipe or the budget.
        MachineError: another search runs in `out`.
    """
    out, budget = out.absolute(), budget or recipe.tune.budget
    limits = budgets.parse(budget, recipe.train.metric)
    check_recipe(recipe)
    with _alone(out), shared_session():
        space, study, baselines = _begin(recipe, out)
        wanted = len(ran(study)) + add_trials if add_trials else trials or recipe.tune.trials
        _run_missing(space, SearchDirs(out), study, wanted)
        front = _front(space, out, study, limits, baselines)
    write_results(front, study)
    _conclude(front, budget)
    return front


def opened(recipe: Recipe, out: Path, budget: str = "") -> Front:
    """What a search in `out` has found so far; no trial runs.

    Raises:
        RecipeError: no trial of this recipe has finished there.
    """
    out = out.absolute()
    limits = budgets.parse(budget or recipe.tune.budget, recipe.train.metric)
    if not (out / "journal.log").is_file():
        raise _nothing_there(out)
    with _alone(out), shared_session():
        space, study, baselines = _begin(recipe, out)
    if not points(study):
        raise _nothing_there(out)
    return _front(space, out, study, limits, baselines)


def _front(
    space: Space,
    out: Path,
    study: optuna.Study,
    limits: Sequence[budgets.Limit],
    baselines: Mapping[str, float],
) -> Front:
    return Front(
        recipe=space.recipe,
        out=out,
        trials=points(study),
        limits=limits,
        baselines=baselines,
        failures=failures(study),
        stopped=stopped(study),
        models=space.models,
        study=study.study_name,
    )


def _nothing_there(out: Path) -> RecipeError:
    return RecipeError(
        "no trial of this recipe has finished here",
        where=str(out),
        remedy="run `rayrec tune` with the same recipe and --out first",
    )


def _begin(recipe: Recipe, out: Path) -> tuple[Space, optuna.Study, dict[str, float]]:
    """The space around a recipe, its journal, and the quality of its baselines."""
    artifact = pipeline.prepare(recipe, out)
    _refuse_empty(artifact)
    models = recipe.tune.models
    if recipe.model.name == AUTO:
        choice = pipeline.choose(recipe, out)
        models = models or compared(choice.figures)
        recipe = pipeline.resolved(recipe, out)
    dataset = Dataset.open(out / "dataset")
    space = Space.around(recipe, dataset, models)
    study = open_journal(out / "journal.log", study_name(space, artifact.digest))
    return space, study, _baselines(space.recipe, dataset, study)


def study_name(space: Space, dataset: str) -> str:
    """Name of the study: the recipe's, and a digest of all that a trial and its figures depend on."""
    recipe = space.recipe
    settings = {
        **checkpoint_settings(recipe),
        **recipe.part("evaluate", "compress"),
        "tune": [recipe.tune.epochs, recipe.tune.max_users, space.models],
        "takes": [sorted(space.dense), sorted(space.hidden)],
        **({"space": recipe.tune.space} if recipe.tune.space else {}),
    }
    return f"{recipe.name}-{cache_key('study', settings, {'dataset': dataset}, STAGE_VERSION)[:12]}"


def compared(choice: Mapping[str, Any]) -> list[str]:
    """The models that auto could compare on a log, by the figures of its choice."""
    measured = [candidate["name"] for candidate in choice["candidates"] if candidate["metric"] is not None]
    return [name for name in dict.fromkeys(measured) if name in model_names()]


def _baselines(recipe: Recipe, dataset: Dataset, study: optuna.Study) -> dict[str, float]:
    """The quality of the recipe's baselines, on the users of the trials; measured once a study."""
    metric = recipe.train.metric
    if BASELINES not in study.user_attrs:
        study.set_user_attr(BASELINES, _measured(recipe, dataset))
    qualities: dict[str, float] = study.user_attrs[BASELINES]
    if qualities:
        figures = ", ".join(f"{name} {quality:.4f}" for name, quality in qualities.items())
        say(f"tune: baselines on the same users, {metric}: {figures}")
    return qualities


def _measured(recipe: Recipe, dataset: Dataset) -> dict[str, float]:
    qualities = {}
    for name in recipe.evaluate.baselines:
        scorer = ModelScorer(build_model(name, {}, dataset))
        figures = validate(recipe, dataset, scorer, recipe.tune.max_users, recipe.seed)
        qualities[name] = float(figures[recipe.train.metric])
    return qualities


def _run_missing(space: Space, dirs: SearchDirs, study: optuna.Study, trials: int) -> None:
    """Run trials until `trials` have finished or were stopped."""
    earlier = ran(study)
    if earlier:
        say(f"tune: {len(earlier)} of {trials} trials are in the journal")
    else:
        dirs.rungs.unlink(missing_ok=True)  # of another search
    if len(earlier) >= trials:
        return
    shutil.rmtree(dirs.trials, ignore_errors=True)  # of trials that were cut off
    run_trials(space.recipe, dirs, study, Proposer(space, earlier, DIRECTIONS), trials)


def _refuse_empty(dataset: Artifact) -> None:
    if not dataset.figures.get("valid"):
        raise DataError(
            "the validation part is empty, and a search chooses by it",
            where=str(dataset.path),
            remedy="give [split] a validation share",
        )


def _conclude(front: Front, budget: str) -> None:
    best, behind = front.best, front.behind
    figures = ", ".join(f"{name} {value:.4g}" for name, value in best.figures().items())
    if front.within_budget:
        say(f"tune: chosen is trial {best.trial} ({figures})")
    else:
        say(f"tune: no trial keeps the budget {budget!r}; the nearest is trial {best.trial} ({figures})")
    if behind:
        further = [name for name in behind if name not in front.models]
        wanted = json.dumps([*front.models, *further])
        remedy = f"--set 'tune.models={wanted}'" if further else "more --trials"
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
