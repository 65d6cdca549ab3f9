"""`rayrec bench models RECIPE`: every model that suits the log, its quality beside what it costs.

Each model is a run of its own in `out/models/NAME`, on the data set that all share, so that it can be served
and compared like any other. Those that are finished are not run again. A model that cannot learn from the log
is listed with its reason.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from app import pipeline
from app.artifact import Artifact, cache_key, open_artifact, publish, reuse, verified_once
from app.bundle.benchmark import measure
from app.bundle.runtime import Ranker
from app.comparison.plots import draw_models
from app.data.dataset import Dataset
from app.errors import DataError, RecipeError, UserError
from app.evaluation.compare import headline
from app.evaluation.scorer import ModelScorer
from app.evaluation.validate import validated
from app.files import write_atomically
from app.models.discovery import model_class, model_names
from app.ray.session import shared_session
from app.recipe import Recipe
from app.recipe_check import AUTO, check_recipe
from app.terminal.console import say
from app.training.checkpoint import load_checkpoint
from app.training.defaults import candidates
from app.training.train import checkpoint_key, fit

# Keys of [train] that hold for every model; the others suit the recipe's own.
SHARED = ("metric", "valid_users", "valid_share", "gpu", "precision", "checkpoint_minutes")
SECTIONS = ("model", "train", "compress", "evaluate", "export")
VERSION = 1  # raise it when the same recipe and data come to give other figures
Json = dict[str, Any]


def bench_models(
    recipe: Recipe, out: Path, *, models: Sequence[str] = (), minutes: float = 4.0, force: bool = False
) -> Json:
    """Train, evaluate and export models on the log of a recipe, one after another.

    Args:
        recipe: its own model is taken with its settings, others with their defaults.
        out: folder of a run; each model goes to `out/models/NAME`, the table to `out/models.json` and the
            picture to `out/models.png`.
        models: their names; none: all.
        minutes: that a model may train, validation apart.
        force: whether finished models are run again.

    Returns:
        figure, the name of the quality; users, how many were ranked; models, each with name, closed_form,
        valid and test ({value, low, high}, 95 % over users, of the compressed model), seconds of training,
        bytes of the bundle and p50_ms of a request of 100 candidates, best on validation first; failed, each
        with name and reason; plot.

    Raises:
        RecipeError: there is no such model.
        DataError: nothing is held out, or no model could be measured.
    """
    names = _ordered(models or _every(recipe), recipe)
    check_recipe(recipe)
    out = out.absolute()
    with shared_session(), verified_once():
        dataset = Dataset.open(pipeline.prepare(recipe, out, force=force).path)
        if not len(dataset.test):
            raise DataError("nothing is held out to measure on", where="split.test", remedy="set it above 0")
        rows: list[Json] = []
        failed: list[Json] = []
        for name in names:
            own = recipe_for(recipe, name, minutes, dataset)
            try:
                artifact = _bench(own, dataset, out / "models" / name, force=force)
            except UserError as error:  # another model may do
                failed.append({"name": name, "reason": str(error)})
                say(f"bench: {name} is left out: {error}")
                continue
            rows.append({"name": name, **artifact.figures})
    return _written(out, rows, failed)


def recipe_for(recipe: Recipe, name: str, minutes: float, dataset: Dataset) -> Recipe:
    """The recipe with another model, in one process and without what only a report of its own needs."""
    changes: Json = {}
    if name != recipe.model.name:
        changes = {"model": {"name": name}}
        if recipe.model.name != AUTO:
            own = recipe.train.model_dump(mode="json", include={*SHARED} & recipe.train.model_fields_set)
            changes["train"] = own
        changes |= next((c.settings for c in candidates(dataset) if c.name == name), {})
    shared = {"train.minutes": minutes, "train.workers": 0, "train.refit": False}
    return recipe.override({**changes, **shared, "evaluate.baselines": [], "evaluate.delay": []})


def _every(recipe: Recipe) -> list[str]:
    own = [recipe.model.name] if recipe.model.file else []
    return [*own, *(name for name in model_names() if name not in own)]


def _ordered(names: Iterable[str], recipe: Recipe) -> list[str]:
    """Models in closed form first: they cost seconds, and whoever stops early has them.

    Raises:
        RecipeError: there is no such model.
    """
    known = _every(recipe)
    for name in names:
        if name not in known:
            raise RecipeError(
                f"no model {name!r}", where="--models", remedy=f"choose among {', '.join(known)}"
            )

    def learns(name: str) -> bool:
        return model_class(recipe.model.source if name == recipe.model.name else name).learns

    return sorted(dict.fromkeys(names), key=learns)


def _bench(recipe: Recipe, dataset: Dataset, folder: Path, *, force: bool) -> Artifact:
    """Measure one model, unless an earlier run did; an artefact of kind "bench" beside its run."""
    target = folder / "bench"
    settings = {**recipe.part(*SECTIONS), "stages": pipeline.VERSIONS}
    parents = {"dataset": dataset.artifact.digest}
    finished = reuse(target, "bench", cache_key("bench", settings, parents, VERSION))
    if finished is not None and not force:
        say(f"bench: {folder.name}: unchanged, kept")
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "dataset").is_symlink():
        (folder / "dataset").symlink_to(os.path.relpath(dataset.path, folder), target_is_directory=True)
    figures = _trained(recipe, dataset, folder / "checkpoint", force=force)
    pipeline.compress(recipe, folder, force=force)
    figures |= _quality(recipe, dataset, folder, pipeline.evaluate(recipe, folder, force=force))
    bundle = pipeline.export(recipe, folder, force=force)
    figures |= {
        "bytes": bundle.figures["bytes"]["bundle"],
        "p50_ms": measure(Ranker.open(bundle.path))["p50_ms"],
    }
    with publish(target, "bench", settings, parents, VERSION) as draft:
        draft.figures.update(figures)
    return open_artifact(target, "bench", verify=False)


def _trained(recipe: Recipe, dataset: Dataset, target: Path, *, force: bool) -> Json:
    """Train within the minutes of the recipe; how long that took, and epochs.

    A model in closed form is fitted again where its time is not known.
    """
    learns = model_class(recipe.model.source).learns
    kept = reuse(target, "checkpoint", checkpoint_key(recipe, dataset)) if learns and not force else None
    start = time.monotonic()
    limit = 60 * recipe.train.minutes if learns else None
    artifact = kept or fit(recipe, dataset, target, limit_s=limit)
    seconds = artifact.figures["seconds"] if learns else round(time.monotonic() - start, 3)
    say(f"bench: {recipe.model.name} was trained in {seconds:.1f} s")
    return {"closed_form": not learns, "seconds": seconds, "epochs": artifact.figures["epochs"]}


def _quality(recipe: Recipe, dataset: Dataset, folder: Path, report: Artifact) -> Json:
    """The headline of the compressed model with its interval on validation and test, and the users ranked."""
    checkpoint = load_checkpoint(folder / "compressed", dataset)
    scorer = ModelScorer(checkpoint.model, checkpoint.rows)
    measured = validated(recipe, dataset, scorer, recipe.evaluate.max_users, recipe.seed)
    figure = headline(report.figures["figures"])
    valid = None
    if measured is not None:
        intervals = measured.intervals(recipe.evaluate.bootstrap, recipe.seed)
        valid = _interval(measured.figures[figure], intervals.get(figure))
    test = _interval(report.figures["figures"][figure], report.figures["intervals"].get(figure))
    requests = json.loads((report.path / "report.json").read_bytes())["protocol"]["requests"]
    return {"figure": figure, "valid": valid, "test": test, "users": requests}


def _interval(value: float, bounds: Sequence[float] | None) -> Json:
    low, high = bounds or (value, value)
    return {"value": value, "low": low, "high": high}


def _written(out: Path, rows: list[Json], failed: list[Json]) -> Json:
    """Write table and picture.

    Raises:
        DataError: no model could be measured.
    """
    if not rows:
        raise DataError(
            f"no model could be measured ({failed[0]['name']}: {failed[0]['reason']})",
            where="bench models",
            remedy="name one with --models to see what is in its way",
        )
    rows.sort(key=lambda row: -(row["valid"] or row["test"])["value"])
    result: Json = {
        "figure": rows[0]["figure"],
        "users": rows[0]["users"],
        "models": rows,
        "failed": failed,
        "plot": str(out / "models.png"),
    }
    draw_models(rows, result["figure"], out / "models.png")
    write_atomically(out / "models.json", json.dumps(result, indent=1).encode() + b"\n")
    return result
