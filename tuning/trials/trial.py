"""One trial, a plain function: train or reuse, compress, validate, export, measure.

It runs in a Ray worker and never raises: an error comes back as a figure, so that one bad
combination of settings does not end the search.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.artifact import Artifact, reuse
from app.bundle.benchmark import measure
from app.bundle.export.export import export
from app.bundle.runtime import Ranker
from app.compression.compress import compress
from app.data.dataset import Dataset
from app.errors import RayRecError
from app.evaluation.evaluate import validate
from app.evaluation.scorer import ModelScorer
from app.files import locked, write_atomically
from app.recipe import Recipe
from app.training.checkpoint import Checkpoint, load_checkpoint
from app.training.train import checkpoint_key, fit
from tuning.space import Settings, changed

CANDIDATES = 100
REPEATS, CALLS = 9, 100
LOW = 1  # the second least of nine is the lower end of the 95 % interval of their median (binomial)
REFERENCE_MS = "p95_ms"  # file of the reference: its own latency


@dataclass(frozen=True)
class SearchDirs:
    """The folders of a search, shared by all of its trials."""

    out: Path

    @property
    def dataset(self) -> Path:
        """The data set that all trials train on."""
        return self.out / "dataset"

    def checkpoint(self, key: str) -> Path:
        """The checkpoint with the cache key `key`."""
        return self.out / "checkpoints" / key[:16]

    @property
    def reference(self) -> Path:
        """The bundle that latencies are measured beside."""
        return self.out / "reference"

    @property
    def ray(self) -> Path:
        """Ray Tune's own files, which are of no use after the search."""
        return self.out / "ray"

    @property
    def trials(self) -> Path:
        """Folders of the trials that run; each trial removes its own."""
        return self.out / "trials"


def run_trial(settings: Settings, recipe: Recipe, dirs: SearchDirs) -> dict[str, Any]:
    """Figures of one trial.

    Returns:
        quality (float), p95_ms (float), p95_range (its interval), bytes (int), reused (bool), checkpoint
        (its key) and seconds; or failed (str), what went wrong, and by_user (bool), whether a user can
        mend it.
    """
    start = time.monotonic()
    folder = dirs.trials / uuid.uuid4().hex
    try:
        figures = _figures(trial_recipe(recipe, settings), dirs, folder)
    except RayRecError as error:
        return {"failed": str(error), "by_user": error.exit_code == 1}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}", "by_user": False}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {**figures, "seconds": time.monotonic() - start}


def trial_recipe(recipe: Recipe, settings: Settings) -> Recipe:
    """The recipe as a trial runs it: in this process, for as many epochs as [tune] says."""
    shorter = {"train.epochs": recipe.tune.epochs} if recipe.tune.epochs else {}
    return changed(recipe, {**settings, **shorter, "train.workers": 0})


def _figures(recipe: Recipe, dirs: SearchDirs, folder: Path) -> dict[str, Any]:
    dataset = Dataset.open(dirs.dataset, verify=False)
    source, key, reused = _trained(recipe, dataset, dirs)
    checkpoint = _compressed(recipe, dataset, source, folder)
    scorer = ModelScorer(checkpoint.model, checkpoint.rows)
    figures = validate(recipe, dataset, scorer, recipe.tune.max_users, recipe.seed)
    quality = float(figures[recipe.train.metric])
    if not math.isfinite(quality):
        raise RayRecError(f"{recipe.train.metric} is {quality}", where="trial")
    bundle = _export(recipe, dataset, checkpoint, folder, figures, retrieval=False)
    p95_ms, low, high = _latency(bundle.path, dirs)
    return {
        "quality": quality,
        "p95_ms": p95_ms,
        "p95_range": (low, high),
        "bytes": bundle.bytes,
        "reused": reused,
        "checkpoint": key,
    }


def trial_bundle(recipe: Recipe, dirs: SearchDirs, folder: Path) -> Artifact:
    """The bundle of a trial as it would be served, below `folder`; what was trained is taken from there.

    Args:
        recipe: of the trial, by `trial_recipe`.
    """
    dataset = Dataset.open(dirs.dataset, verify=False)
    source, _, _ = _trained(recipe, dataset, dirs)
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


def _trained(recipe: Recipe, dataset: Dataset, dirs: SearchDirs) -> tuple[Path, str, bool]:
    """The checkpoint of the recipe's training settings, its cache key, and whether it was there before.

    Of two trials with equal training settings one trains and the other waits for it.
    """
    key = checkpoint_key(recipe, dataset)
    folder = dirs.checkpoint(key)
    with locked(folder.with_suffix(".lock")):
        existing = reuse(folder, "checkpoint", key)
        if existing is None:
            fit(recipe, dataset, folder)
    return folder, key, existing is not None


def _latency(bundle: Path, dirs: SearchDirs) -> tuple[float, float, float]:
    """p95 in ms of one request at a time on one thread, and its 95 % interval.

    It is measured in turns with a reference, the bundle of the first trial, as a ratio: a machine that is
    slow for a while is slow for both. The milliseconds are those of the reference when it was alone. Only one
    trial measures at a time.
    """
    ranker = Ranker.open(bundle, threads=1, verify=False)
    with locked(dirs.out / "measure.lock"):
        if not (dirs.reference / REFERENCE_MS).is_file():
            _keep_reference(bundle, dirs)
        reference = Ranker.open(dirs.reference, threads=1, verify=False)
        ratios = sorted(_p95(ranker) / _p95(reference) for _ in range(REPEATS))
    own = float((dirs.reference / REFERENCE_MS).read_text())
    return own * statistics.median(ratios), own * ratios[LOW], own * ratios[-1 - LOW]


def _keep_reference(bundle: Path, dirs: SearchDirs) -> None:
    shutil.rmtree(dirs.reference, ignore_errors=True)
    shutil.copytree(bundle, dirs.reference)
    ranker = Ranker.open(dirs.reference, threads=1, verify=False)
    own = statistics.median(_p95(ranker) for _ in range(REPEATS))
    write_atomically(dirs.reference / REFERENCE_MS, str(own).encode())


def _p95(ranker: Ranker) -> float:
    return measure(ranker, candidates=CANDIDATES, calls=CALLS)["p95_ms"]
