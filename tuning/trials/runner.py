"""Runs the trials of a search with Ray Tune, until the journal holds as many as are asked for."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import optuna

from app.errors import RecipeError
from app.ray.session import ray_session
from app.recipe import Recipe
from app.terminal.console import progress
from app.training.on_ray import with_copied_model
from tuning.propose import Proposer
from tuning.trials.dirs import SearchDirs
from tuning.trials.ledger import Ledger
from tuning.trials.trial import on_ray_train, run_trial

# Ctrl-C is ours to handle; the journal replaces Tune's own record of the experiment.
ENVIRONMENT = {"TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}


def run_trials(
    recipe: Recipe, dirs: SearchDirs, study: optuna.Study, proposer: Proposer, trials: int
) -> None:
    """Run trials until the journal holds `trials` finished ones.

    Raises:
        RayRecError: several failed one after another; its text is the last one's.
    """
    os.environ.update(ENVIRONMENT)
    recipe = with_copied_model(recipe, dirs.out)
    ledger = Ledger(recipe, study, proposer, trials)
    with ray_session(), progress("tune", trials) as bar:
        bar.advance(ledger.finished)
        ledger.bar = bar
        while ledger.missing and not ledger.exhausted:
            with _quiet():
                _tuner(recipe, dirs, ledger).fit()
            ledger.raise_if_hopeless()
    shutil.rmtree(dirs.ray, ignore_errors=True)
    if not ledger.finished:
        raise RecipeError("nothing to search", where="model.name", remedy="choose a model with a SPACE")


def _tuner(recipe: Recipe, dirs: SearchDirs, ledger: Ledger) -> Any:
    from ray import tune

    from tuning.trials.searcher import LedgerSearcher  # imports Ray, which takes seconds

    shutil.rmtree(dirs.ray, ignore_errors=True)
    trial = tune.with_parameters(run_trial, recipe=recipe, dirs=dirs)
    return tune.Tuner(
        tune.with_resources(trial, _resources(recipe)),
        tune_config=tune.TuneConfig(
            search_alg=LedgerSearcher(ledger),
            num_samples=ledger.missing,
            max_concurrent_trials=recipe.tune.parallel or _at_a_time(recipe),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="search", storage_path=str(dirs.ray), verbose=0),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Tune prints, whatever its verbosity, off stdout, where `--json` promises one object alone."""
    verbose = os.environ.get("RAYREC_VERBOSE")
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(sys.stderr if verbose else nowhere):
        yield


def _resources(recipe: Recipe) -> dict[str, float]:
    """What Ray keeps for the process of a trial; one that waits for workers of its own needs nothing."""
    import ray

    if on_ray_train(recipe):
        return {"memory": 1}  # byte; Ray refuses nothing at all
    # Without a GPU in the cluster, asking for one would wait for ever; the trial says it better.
    has_gpu = "GPU" in ray.cluster_resources()  # type: ignore[no-untyped-call]
    return {"cpu": 1, "gpu": 1 if recipe.train.gpu and has_gpu else 0}


def _at_a_time(recipe: Recipe) -> int:
    """Trials that run side by side without disturbing each other: one a core, or a group of workers."""
    import ray

    if on_ray_train(recipe):
        kind = "GPU" if recipe.train.gpu else "CPU"
        there = int(ray.cluster_resources().get(kind, 0))  # type: ignore[no-untyped-call]
        return max(1, there // recipe.train.workers)

    cores = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    # A node of our own claims more cores than there are, so that no task starves.
    several = len(ray.nodes()) > 1  # type: ignore[no-untyped-call]
    return cores if several else max(1, min(cores, os.cpu_count() or 1))
