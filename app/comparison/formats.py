"""`rayrec bench formats RECIPE`: one trained model in every format of an export, each in its own runtime.

An export is an artefact of its own in `out/NAME`; one that is there already is not made again. A format that
needs an extra which is not installed, that the recipe does not allow or that cannot hold the model is listed
with its reason.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app import pipeline
from app.artifact import verified_once
from app.bundle.export.formats import Score, export_format, format_names
from app.bundle.export.whole_model.model import difference
from app.bundle.format.layout import Array
from app.bundle.request.requests import RankRequest
from app.comparison.requests import random_requests
from app.data.dataset import Dataset
from app.errors import RecipeError, UserError
from app.evaluation.scorer import ModelScorer
from app.files import write_atomically
from app.ray.session import shared_session
from app.recipe import Recipe
from app.terminal.console import say
from app.training.checkpoint import load_checkpoint

REQUESTS, CANDIDATES, WARM_UP = 1000, 100, 20
Json = dict[str, Any]


def bench_formats(recipe: Recipe, out: Path, *, formats: Sequence[str] = (), force: bool = False) -> Json:
    """Export the model of a recipe in several formats, and measure each.

    Args:
        recipe: whose model is exported; it is trained where `out` does not have it.
        out: folder of a run; the table goes to `out/formats.json`.
        formats: their names; none: all.
        force: whether finished stages are run again.

    Returns:
        model, its name; requests, how many were scored; formats, each with name, bytes of its files, p50_ms
        and p95_ms of a request of 100 candidates on one thread, and difference, the largest one from the
        model's scores, relative where these exceed 1; failed, each with name and reason.

    Raises:
        RecipeError: there is no such format.
    """
    names = list(formats) or format_names()
    for name in set(names) - set(format_names()):
        raise RecipeError(
            f"no format {name!r}", where="--formats", remedy=f"choose among {', '.join(format_names())}"
        )
    out = out.absolute()
    with shared_session(), verified_once():
        pipeline.run(recipe, out, until="refit" if recipe.train.refit else "evaluate", force=force)
        return _written(out, *_measured(recipe, out, names, force=force))


def _measured(
    recipe: Recipe, out: Path, names: Sequence[str], *, force: bool
) -> tuple[str, list[Json], list[Json]]:
    """The name of the model, the formats that were measured, and those that were not."""
    dataset = Dataset.open(out / "dataset")
    checkpoint = load_checkpoint(pipeline.weights_folder(recipe, dataset, out), dataset)
    requests, batch = random_requests(dataset, checkpoint.model.reads, REQUESTS, CANDIDATES, recipe.seed)
    expected = ModelScorer(checkpoint.model, checkpoint.rows).candidates(batch).numpy()
    rows: list[Json] = []
    failed: list[Json] = []
    for name in names:
        try:
            format = export_format(name, unpickle=recipe.export.unpickle)
            artifact = pipeline.export(recipe, out, force=force, format=name)
        except UserError as error:  # another format may do
            failed.append({"name": name, "reason": str(error)})
            say(f"bench: {name} is left out: {error}")
            continue
        measured = _measure(format.read(artifact.path), requests, expected)
        rows.append({"name": name, "bytes": artifact.bytes, **measured})
    return checkpoint.name, rows, failed


def _measure(score: Score, requests: Sequence[RankRequest], expected: Array) -> Json:
    """Latency over the requests, one after another, and the largest difference from the scores expected."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for request in requests[:WARM_UP]:
            score(request)
        elapsed, scores = np.empty(len(requests)), np.empty_like(expected)
        for number, request in enumerate(requests):
            start = time.perf_counter()
            scored = score(request)
            elapsed[number] = time.perf_counter() - start
            scores[number] = [scored[item] for item in request.items]
    finally:
        torch.set_num_threads(threads)
    p50, p95 = np.percentile(elapsed * 1e3, (50, 95))
    return {"p50_ms": float(p50), "p95_ms": float(p95), "difference": difference(scores, expected)}


def _written(out: Path, model: str, rows: list[Json], failed: list[Json]) -> Json:
    result: Json = {"model": model, "requests": REQUESTS, "formats": rows, "failed": failed}
    write_atomically(out / "formats.json", json.dumps(result, indent=1).encode() + b"\n")
    return result
