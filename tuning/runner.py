"""Ray Tune runs the trials; this hands it proposals and takes its results to the journal."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import optuna

from app.errors import DataError, RayRecError, RecipeError
from app.ray.session import ray_session
from app.recipe import Recipe
from app.terminal.console import progress, say
from tuning.front import Point
from tuning.journal import points, record
from tuning.propose import Proposal, Proposer
from tuning.trial import SearchDirs, run_trial

GIVE_UP = 3  # failures one after another
# Ctrl-C is ours to handle; the journal replaces Tune's own record of the experiment.
ENVIRONMENT = {"TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}


def run_trials(
    recipe: Recipe, place: SearchDirs, study: optuna.Study, proposer: Proposer, trials: int
) -> int:
    """Run trials until the journal holds `trials` finished ones.

    Returns:
        How many trials failed on the way.

    Raises:
        RayRecError: several failed one after another; its text is the last one's.
    """
    os.environ.update(ENVIRONMENT)
    ledger = Ledger(recipe, study, proposer, trials)
    with ray_session(), progress("tune", trials) as bar:
        bar.advance(ledger.finished)
        ledger.bar = bar
        while ledger.missing and not ledger.exhausted:
            with _quiet():
                _tuner(recipe, place, ledger).fit()
            ledger.raise_if_hopeless()
    shutil.rmtree(place.ray, ignore_errors=True)
    if not ledger.finished:
        raise RecipeError("nothing to search", where="model.name", remedy="choose a model with a SPACE")
    return ledger.failed


class Ledger:
    """What is under way, what is finished, and what failed."""

    def __init__(self, recipe: Recipe, study: optuna.Study, proposer: Proposer, trials: int) -> None:
        self.recipe, self.study, self.proposer, self.trials = recipe, study, proposer, trials
        self.finished = len(points(study))
        self.failed = self.in_a_row = 0
        self.exhausted = False
        self.last: dict[str, Any] = {}
        self.open: dict[str, Proposal] = {}
        self.bar: Any = None

    @property
    def missing(self) -> int:
        """Finished trials that are still to come."""
        return self.trials - self.finished

    def next(self, trial: str) -> dict[str, Any] | None:
        """Settings for a trial of Tune's, or None when there shall be no more."""
        if self.in_a_row >= GIVE_UP:
            return None
        proposal = self.proposer.propose()
        if proposal is None:
            say("tune: every combination of the space has been tried")
            self.exhausted = True
            return None
        self.open[trial] = proposal
        return proposal.settings

    def close(self, trial: str, result: dict[str, Any] | None) -> None:
        """Take the result of a trial, None where its worker died."""
        proposal = self.open.pop(trial)
        if result is None or "quality" not in result:
            self._fail(proposal, result or {"failed": "the worker died", "by_user": False})
            return
        point = Point(
            trial=-1,
            settings=proposal.settings,
            quality=result["quality"],
            p95_ms=result["p95_ms"],
            bytes=result["bytes"],
            reused=result["reused"],
            metric=self.recipe.train.metric,
        )
        point = record(self.study, proposal, point, result["checkpoint"])
        self.proposer.tell(proposal, [point.quality, point.p95_ms, point.bytes])
        self.finished, self.in_a_row = self.finished + 1, 0
        self.bar.advance(1)
        say(
            f"trial {point.trial} ({self.finished} of {self.trials}): {_line(point)}"
            f" ({result['seconds']:.0f} s)"
        )

    def _fail(self, proposal: Proposal, result: dict[str, Any]) -> None:
        self.proposer.drop(proposal.number)
        self.failed, self.in_a_row, self.last = self.failed + 1, self.in_a_row + 1, result
        say(f"trial failed: {result['failed']}")

    def raise_if_hopeless(self) -> None:
        """Give up where nothing but failures came of late."""
        if self.in_a_row >= GIVE_UP:
            kind = DataError if self.last["by_user"] else RayRecError
            raise kind(
                f"{self.in_a_row} trials failed one after another: {self.last['failed']}", where="tune"
            )


def _line(point: Point) -> str:
    reused = "checkpoint reused" if point.reused else "trained"
    return f"{point.metric} {point.quality:.4f}, p95 {point.p95_ms:.2f} ms, {point.mb:.2f} MB, {reused}"


def _tuner(recipe: Recipe, place: SearchDirs, ledger: Ledger) -> Any:
    import ray
    from ray import tune

    from tuning.searcher import LedgerSearcher

    shutil.rmtree(place.ray, ignore_errors=True)
    # Without a GPU in the cluster, asking for one would wait for ever; the trial says it better.
    has_gpu = "GPU" in ray.cluster_resources()  # type: ignore[no-untyped-call]
    trial = tune.with_parameters(run_trial, recipe=recipe, place=place)
    return tune.Tuner(
        tune.with_resources(trial, {"cpu": 1, "gpu": 1 if recipe.train.gpu and has_gpu else 0}),
        tune_config=tune.TuneConfig(
            search_alg=LedgerSearcher(ledger),
            num_samples=ledger.missing,
            max_concurrent_trials=recipe.tune.parallel or _cores(),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="search", storage_path=str(place.ray), verbose=0),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Tune prints to stdout whatever its verbosity, where `--json` wants one object alone."""
    shown = os.environ.get("RAYREC_VERBOSE")
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(sys.stderr if shown else nowhere):
        yield


def _cores() -> int:
    """Trials that run side by side without disturbing each other: one a core."""
    import ray

    cores = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    # A node of our own claims more cores than there are, so that no task starves.
    several = len(ray.nodes()) > 1  # type: ignore[no-untyped-call]
    return cores if several else max(1, min(cores, os.cpu_count() or 1))
