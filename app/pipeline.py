"""All stages on one page: (recipe, input directory) -> output directory.

    events, items, users --prepare--> dataset/ [--choose--> choice/] --train--> checkpoint/
        --compress--> compressed/ --evaluate--> report/ [--refit--> refit/] --export--> bundle/
        --serve--> HTTP --feedback--> events

A stage whose inputs, settings and code have not changed is not run again; `force` overrides.
"""

from __future__ import annotations

import shutil
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
from app.evaluation.evaluate import evaluate as evaluate_model
from app.evaluation.report import STAGE_VERSION as REPORT_VERSION
from app.evaluation.report import write_report
from app.evaluation.scorer import ModelScorer
from app.ray.session import shared_session
from app.recipe import Recipe
from app.recipe_check import AUTO, check_recipe
from app.terminal.console import say
from app.training import choice
from app.training.checkpoint import copy_checkpoint, load_checkpoint
from app.training.defaults import epoch_hints, settled
from app.training.task import STAGE_VERSION as TRAIN_VERSION
from app.training.task import checkpoint_settings
from app.training.train import checkpoint_key, forget_run
from app.training.train import train as train_model
from app.training.valid_too import train_valid_too

REFIT_NOTE = (
    "the bundle has weights that were trained once more on all parts (train.refit); these figures are of the"
    " model before, which had seen the training part alone"
)
VALID_TOO_NOTE = (
    "the weights were trained on the training and the validation part together, for the epochs that"
    " validation had chosen (train.valid_too)"
)


def prepare(recipe: Recipe, out: Path, *, force: bool = False) -> Artifact:
    """Events, items and users -> `out/dataset`."""
    settings, parents = recipe.part("data", "split", "features"), source_digests(recipe)
    key = cache_key("dataset", settings, parents, PREPARE_VERSION)
    return _once(out / "dataset", "dataset", key, force, lambda: prepare_data(recipe, out / "dataset"))


def choose(recipe: Recipe, out: Path, *, force: bool = False) -> Artifact:
    """`out/dataset` -> `out/choice`: the model that suits the log, where model.name is "auto"."""
    dataset, folder = Dataset.open(out / "dataset"), out / "candidates"
    if force:
        shutil.rmtree(folder, ignore_errors=True)
    settings, parents = checkpoint_settings(recipe), _digests(out, "dataset")
    key = cache_key("choice", settings, parents, choice.STAGE_VERSION)

    def make() -> Artifact:
        return choice.choose(recipe, dataset, folder, out / "choice", settings, parents)

    return _once(out / "choice", "choice", key, force, make)


def resolved(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with the model of `out/choice` where model.name is "auto", and what suits the model."""
    if not _is_auto(recipe):
        return settled(recipe)
    figures = open_artifact(out / "choice", "choice").figures
    chosen = next(row for row in figures["candidates"] if row["name"] == figures["chosen"])
    return settled(choice.with_candidate(recipe, chosen["name"], chosen["settings"]))


def train(recipe: Recipe, out: Path, *, force: bool = False) -> Artifact:
    """`out/dataset` -> `out/checkpoint`; goes on where an interrupted run stopped.

    What the choice of a model has trained in one process is taken from there. With `train.valid_too` the
    checkpoint that validation chose is `out/chosen`, and `out/checkpoint` is trained on both parts.
    """
    if not recipe.train.valid_too:
        return _trained(recipe, out, "checkpoint", force=force)
    chosen = _trained(recipe, out, "chosen", force=force)
    recipe, dataset, target = resolved(recipe, out), Dataset.open(out / "dataset"), out / "checkpoint"
    if force:
        forget_run(target)
    parents = _digests(out, "dataset") | {"checkpoint": chosen.digest}
    key = cache_key("checkpoint", {"valid_too": True}, parents, TRAIN_VERSION)
    return _once(target, "checkpoint", key, force, lambda: train_valid_too(recipe, dataset, chosen, target))


def _trained(recipe: Recipe, out: Path, name: str, *, force: bool) -> Artifact:
    """The checkpoint `out/NAME` of the training part alone."""
    target = out / name
    if _is_auto(recipe) and recipe.train.workers < 2:
        source, parents = out / "candidates" / resolved(recipe, out).model.name, _digests(out, "choice")
        key = cache_key("checkpoint", {}, parents, choice.STAGE_VERSION)

        def copy() -> Artifact:
            return copy_checkpoint(source, target, parents, choice.STAGE_VERSION)

        return _once(target, "checkpoint", key, force, copy)
    recipe, dataset = resolved(recipe, out), Dataset.open(out / "dataset")
    if force:
        forget_run(target)
    key = checkpoint_key(recipe, dataset)
    return _once(target, "checkpoint", key, force, lambda: train_model(recipe, dataset, target))


def compress(recipe: Recipe, out: Path, *, force: bool = False) -> Artifact:
    """`out/checkpoint` -> `out/compressed`: the same model, smaller."""
    recipe = resolved(recipe, out)
    source, target = out / "checkpoint", out / "compressed"
    key = cache_key("checkpoint", recipe.part("compress"), _digests(out, "checkpoint"), COMPRESS_VERSION)

    def make() -> Artifact:
        return compress_model(recipe, Dataset.open(out / "dataset"), source, target)

    return _once(target, "checkpoint", key, force, make)


def evaluate(recipe: Recipe, out: Path, *, force: bool = False) -> Artifact:
    """`out/compressed` on the test part -> `out/report`, with baselines beside it."""
    chosen = open_artifact(out / "choice", "choice").figures if _is_auto(recipe) else None
    recipe = resolved(recipe, out)
    settings = {**recipe.part("evaluate"), "refit": recipe.train.refit, "valid_too": recipe.train.valid_too}
    parents = {"checkpoint": _digests(out, "compressed")["compressed"]}
    key = cache_key("report", settings, parents, REPORT_VERSION)

    def make() -> Artifact:
        dataset = Dataset.open(out / "dataset")
        checkpoint = load_checkpoint(out / "compressed", dataset)
        figures, before = checkpoint.artifact.figures, None
        if figures["steps"] or figures["rows"] != "float32":
            before = ModelScorer(load_checkpoint(out / "checkpoint", dataset).model)
        scorer = ModelScorer(checkpoint.model, checkpoint.rows)
        report = evaluate_model(recipe, dataset, scorer, uncompressed=before)
        if recipe.train.valid_too:
            report.notes.append(VALID_TOO_NOTE)
        if recipe.train.refit:
            report.notes.append(REFIT_NOTE)
        if chosen is not None:
            report.notes.append(choice.sentence(chosen))
        report.notes.extend(epoch_hints(recipe, open_artifact(out / "checkpoint").figures))
        return write_report(
            report, out / "report", settings, parents, curve=out / "checkpoint" / "curve.json"
        )

    return _once(out / "report", "report", key, force, make)


def refit(recipe: Recipe, out: Path, *, force: bool = False) -> Artifact:
    """`out/compressed` trained once more on all parts -> `out/refit`, where train.refit asks for it.

    Where the split held nothing out, the weights have seen every event, and `out/compressed` stays.
    """
    _refuse_unasked_refit(recipe)
    recipe = resolved(recipe, out)
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
    recipe = resolved(recipe, out)
    dataset, target = Dataset.open(out / "dataset"), out / format
    source, report = weights_folder(recipe, dataset, out), open_artifact(out / "report", "report")
    settings = {**recipe.part("export", "compress"), "name": recipe.name}
    parents = {"checkpoint": _digests(out, source.name)[source.name], "report": report.digest}
    key = cache_key(format, settings, parents, EXPORT_VERSION)

    def make() -> Artifact:
        checkpoint = load_checkpoint(source, dataset)
        refitted = {name: checkpoint.artifact.figures.get(name) for name in ("epochs", "events", "chosen_by")}
        figures = report.figures | ({"refit": refitted} if source.name == "refit" else {})
        if recipe.train.valid_too:
            figures |= {"valid_too": open_artifact(out / "checkpoint", verify=False).figures["events"]}
        return export_checkpoint(
            recipe, dataset, checkpoint, target, settings, parents, figures, format=format
        )

    return _once(target, format, key, force, make)


STAGES: dict[str, Callable[..., Artifact]] = {
    "prepare": prepare,
    "choose": choose,
    "train": train,
    "compress": compress,
    "evaluate": evaluate,
    "refit": refit,
    "export": export,
}
# Of the code of the stages: what is made by several of them at once depends on all of these.
VERSIONS = {
    "prepare": PREPARE_VERSION,
    "choose": choice.STAGE_VERSION,
    "train": TRAIN_VERSION,
    "compress": COMPRESS_VERSION,
    "evaluate": REPORT_VERSION,
    "export": EXPORT_VERSION,
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
        chosen = self.artifacts["choose"].figures if "choose" in self.artifacts else None
        return {
            "bundle": str(bundle.path),
            "data": {k: data[k] for k in ("rows_in", "rows_kept", "rejected", "users", "items", "order")},
            "training": self.artifacts["train"].figures,
            **({"choice": chosen} if chosen else {}),
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
    export_format(format, unpickle=recipe.export.unpickle)  # a mistake shows before hours of work
    if until == "refit":
        _refuse_unasked_refit(recipe)
    check_recipe(recipe)
    with shared_session(), verified_once():
        for name, stage in STAGES.items():
            if name == "refit" != until and not recipe.train.refit:
                continue
            if name == "choose" and not _is_auto(recipe):
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


def _is_auto(recipe: Recipe) -> bool:
    """Whether the model is chosen by comparison."""
    return recipe.model.name == AUTO and not recipe.model.file


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
