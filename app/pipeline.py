"""All stages on one page: (recipe, input directory) -> output directory.

    events, items, users --prepare--> dataset/ --train--> checkpoint/ --compress--> compressed/
        --evaluate--> report/ [--refit--> refit/] --export--> bundle/ --serve--> HTTP --feedback--> events

A stage whose inputs, settings and code have not changed is not run again; `force` overrides.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.artifact import Artifact, cache_key, open_artifact, reuse, verified_once
from app.bundle.export.export import STAGE_VERSION as EXPORT_VERSION
from app.bundle.export.export import export as export_checkpoint
from app.bundle.export.formats import DEFAULT, export_format
from app.compression.compress import STAGE_VERSION as COMPRESS_VERSION
from app.compression.compress import compress as compress_model
from app.compression.refit import STAGE_VERSION as REFIT_VERSION
from app.compression.refit import refit as refit_model
from app.data.dataset import Dataset
from app.data.stage import STAGE_VERSION as PREPARE_VERSION
from app.data.stage import prepare as prepare_data
from app.data.stage import source_digests
from app.errors import RecipeError
from app.evaluation.evaluate import check_baseline
from app.evaluation.evaluate import evaluate as evaluate_model
from app.evaluation.report import STAGE_VERSION as REPORT_VERSION
from app.evaluation.report import write_report
from app.evaluation.scorer import ModelScorer
from app.models.discovery import model_config
from app.ray.session import shared_session
from app.recipe import Recipe
from app.terminal.console import say
from app.training.checkpoint import load_checkpoint
from app.training.train import checkpoint_key, checkpoint_settings, forget_run
from app.training.train import train as train_model

REFIT_NOTE = (
    "the bundle has weights that were trained once more on all parts (train.refit); these figures are of the"
    " model before, which had seen the training part alone"
)


def prepare(recipe: Recipe, out: Path, *, force: bool = False) -> Artifact:
    """Events, items and users -> `out/dataset`."""
    settings, parents = recipe.part("data", "split", "features"), source_digests(recipe)
    key = cache_key("dataset", settings, parents, PREPARE_VERSION)
    return _once(out / "dataset", "dataset", key, force, lambda: prepare_data(recipe, out / "dataset"))


def train(recipe: Recipe, out: Path, *, force: bool = False) -> Artifact:
    """`out/dataset` -> `out/checkpoint`; goes on where an interrupted run stopped."""
    dataset, target = Dataset.open(out / "dataset"), out / "checkpoint"
    if force:
        forget_run(target)
    key = checkpoint_key(recipe, dataset)
    return _once(target, "checkpoint", key, force, lambda: train_model(recipe, dataset, target))


def compress(recipe: Recipe, out: Path, *, force: bool = False) -> Artifact:
    """`out/checkpoint` -> `out/compressed`: the same model, smaller."""
    source, target = out / "checkpoint", out / "compressed"
    key = cache_key("checkpoint", recipe.part("compress"), _digests(out, "checkpoint"), COMPRESS_VERSION)

    def make() -> Artifact:
        return compress_model(recipe, Dataset.open(out / "dataset"), source, target)

    return _once(target, "checkpoint", key, force, make)


def evaluate(recipe: Recipe, out: Path, *, force: bool = False) -> Artifact:
    """`out/compressed` on the test part -> `out/report`, with baselines beside it."""
    settings = {**recipe.part("evaluate"), "refit": recipe.train.refit}
    parents = {"checkpoint": _digests(out, "compressed")["compressed"]}
    key = cache_key("report", settings, parents, REPORT_VERSION)

    def make() -> Artifact:
        dataset = Dataset.open(out / "dataset")
        checkpoint = load_checkpoint(out / "compressed", dataset)
        report = evaluate_model(recipe, dataset, ModelScorer(checkpoint.model, checkpoint.rows))
        if recipe.train.refit:
            report.notes.append(REFIT_NOTE)
        return write_report(
            report, out / "report", settings, parents, curve=out / "checkpoint" / "curve.json"
        )

    return _once(out / "report", "report", key, force, make)


def refit(recipe: Recipe, out: Path, *, force: bool = False) -> Artifact:
    """`out/compressed` trained once more on all parts -> `out/refit`, where train.refit asks for it.

    Where the split held nothing out, the weights have seen every event, and `out/compressed` stays.
    """
    _refuse_unasked_refit(recipe)
    dataset, target = Dataset.open(out / "dataset"), out / "refit"
    if weights_folder(recipe, dataset, out) != target:
        say("refit: nothing was held out, so the weights have seen every event already")
        return open_artifact(out / "compressed", "checkpoint")
    if force:
        forget_run(target)
    settings = {**checkpoint_settings(recipe), **recipe.part("compress")}
    parents = _digests(out, "dataset", "checkpoint", "compressed")
    key = cache_key("checkpoint", settings, parents, REFIT_VERSION)

    def make() -> Artifact:
        trained = open_artifact(out / "checkpoint", "checkpoint")
        return refit_model(recipe, dataset, trained, target, settings, parents)

    return _once(target, "checkpoint", key, force, make)


def export(recipe: Recipe, out: Path, *, force: bool = False, format: str = DEFAULT) -> Artifact:
    """`out/compressed`, or `out/refit`, and the report -> `out/bundle`: all that serving needs.

    Another format of app/bundle/export/formats goes to a folder of its name.
    """
    dataset, target = Dataset.open(out / "dataset"), out / format
    source, report = weights_folder(recipe, dataset, out), open_artifact(out / "report", "report")
    settings = {**recipe.part("export", "compress"), "name": recipe.name}
    parents = {"checkpoint": _digests(out, source.name)[source.name], "report": report.digest}
    key = cache_key(format, settings, parents, EXPORT_VERSION)

    def make() -> Artifact:
        checkpoint = load_checkpoint(source, dataset)
        refitted = {name: checkpoint.artifact.figures.get(name) for name in ("epochs", "events", "chosen_by")}
        figures = report.figures | ({"refit": refitted} if source.name == "refit" else {})
        return export_checkpoint(
            recipe, dataset, checkpoint, target, settings, parents, figures, format=format
        )

    return _once(target, format, key, force, make)


STAGES: dict[str, Callable[..., Artifact]] = {
    "prepare": prepare,
    "train": train,
    "compress": compress,
    "evaluate": evaluate,
    "refit": refit,
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
            **({"refit": bundle.figures["refit"]} if "refit" in bundle.figures else {}),
            "bytes": bundle.figures["bytes"],
            "seconds": self.seconds,
        }


def run(
    recipe: Recipe, out: Path, *, until: str = "export", force: bool = False, format: str = DEFAULT
) -> Run:
    """All stages up to `until`, each only where something has changed; refit only where it is asked for.

    `format` is that of the export.
    """
    artifacts, seconds = {}, {}
    export_format(format)  # a mistake shows before hours of work
    if until == "refit":
        _refuse_unasked_refit(recipe)
    model_config(recipe.model.source, recipe.model.hyperparameters)
    for name in recipe.evaluate.baselines:
        check_baseline(name)
    with shared_session(), verified_once():
        for name, stage in STAGES.items():
            if name == "refit" != until and not recipe.train.refit:
                continue
            start = time.monotonic()
            options = {"format": format} if name == "export" else {}
            artifacts[name] = stage(recipe, out, force=force, **options)
            seconds[name] = round(time.monotonic() - start, 2)
            if name == until:
                break
    return Run(artifacts, seconds)


def weights_folder(recipe: Recipe, dataset: Dataset, out: Path) -> Path:
    """The checkpoint that is served: that of the refit, if it is asked for and something was held out."""
    held_out = len(dataset.valid) + len(dataset.test)
    return out / ("refit" if recipe.train.refit and held_out else "compressed")


def _refuse_unasked_refit(recipe: Recipe) -> None:
    if not recipe.train.refit:
        raise RecipeError(
            "the recipe asks for no refit", where="train.refit", remedy="add --set train.refit=true"
        )


def _digests(out: Path, *names: str) -> dict[str, str]:
    """Digests of artefacts below `out`; their files are verified where they are read."""
    return {name: open_artifact(out / name, verify=False).digest for name in names}


def _once(out: Path, kind: str, key: str, force: bool, make: Callable[[], Artifact]) -> Artifact:
    artifact = None if force else reuse(out, kind, key)
    if artifact is None:
        return make()
    say(f"{out.name}: unchanged, kept")
    return artifact
