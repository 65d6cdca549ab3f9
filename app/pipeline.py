"""All stages on one page: (recipe, input directory) -> output directory.

    events, items, users --prepare--> dataset/ --train--> checkpoint/ --compress--> compressed/
        --evaluate--> report/ --export--> bundle/ --serve--> HTTP --feedback--> events

A stage whose inputs and settings have not changed is not run again; `force` overrides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.artifact import Artifact, cache_key, open_artifact, reuse
from app.bundle.export.export import export as export_bundle
from app.compression.compress import compress as compress_model
from app.data.dataset import Dataset
from app.data.stage import prepare as prepare_data
from app.data.stage import source_digests
from app.evaluation.evaluate import evaluate as evaluate_model
from app.evaluation.report import write_report
from app.evaluation.scorer import ModelScorer
from app.models.base import model_config
from app.ray.session import shared_session
from app.recipe import Recipe
from app.terminal.console import say
from app.training.checkpoint import load_checkpoint
from app.training.train import checkpoint_settings, forget_run
from app.training.train import train as train_model


def prepare(recipe: Recipe, out: Path, *, force: bool = False) -> Artifact:
    """Events, items and users -> `out/dataset`."""
    settings, parents = recipe.part("data", "split", "features"), source_digests(recipe)
    place = out / "dataset"
    return _once(place, "dataset", settings, parents, force, lambda: prepare_data(recipe, place))


def train(recipe: Recipe, out: Path, *, force: bool = False) -> Artifact:
    """`out/dataset` -> `out/checkpoint`; goes on where an interrupted run stopped."""
    dataset, place = Dataset.open(out / "dataset"), out / "checkpoint"
    if force:
        forget_run(place)
    settings, parents = checkpoint_settings(recipe), {"dataset": dataset.artifact.digest}
    return _once(place, "checkpoint", settings, parents, force, lambda: train_model(recipe, dataset, place))


def compress(recipe: Recipe, out: Path, *, force: bool = False) -> Artifact:
    """`out/checkpoint` -> `out/compressed`: the same model, smaller."""
    dataset, source, place = Dataset.open(out / "dataset"), out / "checkpoint", out / "compressed"
    settings, parents = recipe.part("compress"), {"checkpoint": open_artifact(source, "checkpoint").digest}
    return _once(
        place, "checkpoint", settings, parents, force, lambda: compress_model(recipe, dataset, source, place)
    )


def evaluate(recipe: Recipe, out: Path, *, force: bool = False) -> Artifact:
    """`out/compressed` on the test part -> `out/report`, with baselines beside it."""
    dataset, place = Dataset.open(out / "dataset"), out / "report"
    checkpoint = load_checkpoint(out / "compressed", dataset)
    settings, parents = recipe.part("evaluate"), {"checkpoint": checkpoint.artifact.digest}

    def make() -> Artifact:
        report = evaluate_model(recipe, dataset, ModelScorer(checkpoint.model, checkpoint.rows))
        return write_report(report, place, settings, parents, curve=out / "checkpoint" / "curve.json")

    return _once(place, "report", settings, parents, force, make)


def export(recipe: Recipe, out: Path, *, force: bool = False) -> Artifact:
    """`out/compressed` and its report -> `out/bundle`: all that serving needs."""
    dataset, place = Dataset.open(out / "dataset"), out / "bundle"
    checkpoint, report = load_checkpoint(out / "compressed", dataset), open_artifact(out / "report", "report")
    settings = {**recipe.part("export", "compress"), "name": recipe.name}
    parents = {"checkpoint": checkpoint.artifact.digest, "report": report.digest}
    return _once(
        place,
        "bundle",
        settings,
        parents,
        force,
        lambda: export_bundle(recipe, dataset, checkpoint, place, settings, parents, report.figures),
    )


STAGES: dict[str, Callable[..., Artifact]] = {
    "prepare": prepare,
    "train": train,
    "compress": compress,
    "evaluate": evaluate,
    "export": export,
}


@dataclass(frozen=True)
class Run:
    """The artefacts of a run, and the seconds that each stage took."""

    artifacts: dict[str, Artifact]
    seconds: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """The figures that `rayrec run --json` prints."""
        data, report = self.artifacts["prepare"].figures, self.artifacts["evaluate"].figures
        bundle = self.artifacts["export"]
        return {
            "bundle": str(bundle.path),
            "data": {k: data[k] for k in ("rows_in", "rows_kept", "rejected", "users", "items")},
            "training": self.artifacts["train"].figures,
            **report,
            "bytes": bundle.figures["bytes"],
            "seconds": self.seconds,
        }


def run(recipe: Recipe, out: Path, *, until: str = "export", force: bool = False) -> Run:
    """All stages up to `until`, each only where something has changed."""
    artifacts, seconds = {}, {}
    model_config(recipe.model.name, recipe.model.hyperparameters)  # a mistake shows before hours of work
    with shared_session():
        for name, stage in STAGES.items():
            start = time.monotonic()
            artifacts[name] = stage(recipe, out, force=force)
            seconds[name] = round(time.monotonic() - start, 2)
            if name == until:
                break
    return Run(artifacts, seconds)


def _once(
    out: Path,
    kind: str,
    settings: Mapping[str, Any],
    parents: Mapping[str, str],
    force: bool,
    make: Callable[[], Artifact],
) -> Artifact:
    found = None if force else reuse(out, kind, cache_key(kind, settings, parents))
    if found is not None:
        say(f"{out.name}: unchanged, kept")
        return found
    return make()
