"""Ships what a budget chooses: measured as it is served, trained on train plus validation, exported.

A trial measures the runtime alone and a bundle without an index, which tells trials apart. What a budget is
about is the whole: HTTP, and all files. So the bundle of a chosen trial is served and measured before it is
trained for good, and where it misses the budget, what that taught is added to the other trials.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from app import pipeline
from app.artifact import open_artifact, reuse
from app.bundle.benchmark import made_up_requests
from app.bundle.runtime import Ranker
from app.client import Client
from app.data.dataset import Dataset
from app.errors import RecipeError
from app.ray.haproxy import free_port
from app.ray.session import shared_session
from app.recipe import Recipe
from app.recipe.serve import Serve
from app.serving.listen import API_KEY
from app.serving.service import running
from app.terminal.console import say
from app.training.train import checkpoint_key
from tuning import budget as budgets
from tuning.front import Front
from tuning.points import Point
from tuning.results.write import write_best
from tuning.trials.dirs import SearchDirs
from tuning.trials.latency import CANDIDATES
from tuning.trials.trial import trial_bundle, trial_recipe

WARM_UP, CALLS = 50, 400
NEAREST = 3  # trials that a refusal names


def ship(front: Front) -> dict[str, Any]:
    """Train the trial that the budget chooses on train plus validation, and export it.

    The recipe, as it was shipped, is written to best.toml. Where validation users were asked for a quality,
    that is the trial's; the report of the bundle is on the test part.

    Returns:
        trial, bundle (its folder), p95_ms and mb of the bundle as served, and figures (of the test part).

    Raises:
        RecipeError: no trial keeps the budget once it is served; the nearest ones are named.
    """
    with shared_session():
        point = _served_within(front)
        recipe = _for_good(front, point)
        write_best(front, point, recipe)
        done = pipeline.run(recipe, front.out)
        bundle = done.artifacts["export"]
        shipped = replace(point, bytes=bundle.bytes, p95_ms=_p95(bundle.path, recipe.serve, front.out))
    if any(limit.excess(shipped) for limit in front.bounds):
        raise _refusal([shipped])
    say(f"ship: trial {point.trial}, served: p95 {shipped.p95_ms:.2f} ms, {shipped.mb:.2f} MB")
    figures = done.artifacts["evaluate"].figures["figures"]
    return {
        "trial": point.trial,
        "bundle": str(bundle.path),
        "p95_ms": round(shipped.p95_ms, 4),
        "mb": round(shipped.mb, 6),
        "figures": figures,
    }


def _served_within(front: Front) -> Point:
    """The best trial that keeps the budget as it is served, with its latency and bytes as served."""
    served: dict[int, Point] = {}
    while True:
        candidates = [served.get(point.trial) or _expected(point, front, served) for point in front.trials]
        best, within = budgets.choose(candidates, front.bounds)
        if best.trial in served:
            if within:
                return best
            raise _refusal(sorted(served.values(), key=lambda p: budgets.worst_excess(p, front.bounds)))
        served[best.trial] = _as_served(front, front.trial(best.trial))


def _expected(point: Point, front: Front, served: Mapping[int, Point]) -> Point:
    """A trial with the least that serving has added to the latency and the bytes of others."""
    if not served:
        return point
    measured = [(front.trial(number), other) for number, other in served.items()]
    slower = min(other.p95_ms - trial.p95_ms for trial, other in measured)
    larger = min(other.bytes - trial.bytes for trial, other in measured)
    return replace(point, p95_ms=point.p95_ms + slower, bytes=point.bytes + larger)


def _as_served(front: Front, point: Point) -> Point:
    dirs = SearchDirs(front.out)
    folder = dirs.trials / f"served-{point.trial}"
    shutil.rmtree(folder, ignore_errors=True)
    recipe = trial_recipe(front.recipe, point.settings)
    try:
        bundle = trial_bundle(recipe, dirs, folder)
        return replace(point, bytes=bundle.bytes, p95_ms=_p95(bundle.path, recipe.serve, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _p95(bundle: Path, settings: Serve, folder: Path) -> float:
    """p95 in ms of requests to a service with one replica, one at a time over loopback; each is another."""
    requests = made_up_requests(Ranker.open(bundle, threads=1, verify=False), CANDIDATES, WARM_UP + CALLS)
    store = folder / "measured"
    alone = {"host": "127.0.0.1", "port": free_port(), "store": str(store), "models": {}}
    alone |= {"min_replicas": 1, "max_replicas": 1}
    elapsed, key = [], os.environ.get(API_KEY)
    with running(bundle, settings.model_copy(update=alone)) as url, Client(url, api_key=key) as client:
        for request in requests:
            start = time.perf_counter()
            client.rank(request)
            elapsed.append(time.perf_counter() - start)
    shutil.rmtree(store, ignore_errors=True)
    return float(np.percentile(elapsed[WARM_UP:], 95) * 1e3)


def _for_good(front: Front, point: Point) -> Recipe:
    """The recipe of a trial as it is trained for good; what the trial has trained is put where it is due.

    Train plus validation are learned unless the recipe asks for a refit on everything. A trial trains in its
    own process: so does this, unless several were asked for.
    """
    recipe = front.recipe_of(point)
    changes: dict[str, Any] = {} if recipe.train.refit else {"train.valid_too": True}
    if recipe.train.workers < 2:
        changes["train.workers"] = 0
    recipe = recipe.override(changes)
    key = checkpoint_key(recipe, Dataset.open(front.out / "dataset"))
    trained = SearchDirs(front.out).checkpoint(key)
    target = front.out / ("chosen" if recipe.train.valid_too else "checkpoint")
    if reuse(trained, "checkpoint", key) and not reuse(target, "checkpoint", key):
        _copy(trained, target)
    return recipe


def _copy(source: Path, target: Path) -> None:
    """Copy a whole artefact; what stood there before is gone once the copy is whole."""
    temporary = target.with_name(f".{target.name}.copy")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(open_artifact(source).path, temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def _refusal(nearest: list[Point]) -> RecipeError:
    named = "; ".join(_line(point) for point in nearest[:NEAREST])
    return RecipeError(
        f"no trial keeps the budget once it is served; nearest: {named}",
        where="budget",
        remedy="allow as much, or search on with --add-trials",
    )


def _line(point: Point) -> str:
    return f"trial {point.trial} ({', '.join(f'{k} {v:.4g}' for k, v in point.figures().items())})"
