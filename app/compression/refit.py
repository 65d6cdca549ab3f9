"""Refit: the evaluated model is trained once more, on every event, and compressed as it was."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.artifact import Artifact, open_artifact, publish, reuse
from app.compression.compress import write_compressed
from app.data.dataset import Dataset
from app.data.merged import merge_parts
from app.models.discovery import model_class
from app.recipe import Recipe
from app.terminal.console import say
from app.training.checkpoint import load_checkpoint
from app.training.train import checkpoint_key, run_folder_of, train

STAGE_VERSION = 1  # raise it when the same data set and checkpoint come to give other files


def refit(
    recipe: Recipe,
    dataset: Dataset,
    trained: Artifact,
    out: Path,
    settings: Mapping[str, Any],
    parents: Mapping[str, str],
) -> Artifact:
    """Train on all parts of `dataset` and publish the compressed checkpoint at `out`.

    The epochs are as many as were best on validation; where validation chose none, because there was
    nothing to predict or no figure was a number, all of train.epochs. Seed, learning rates and compression
    are those of the evaluated model. A model in closed form is fitted again.

    What an interrupted run has done lies in `.NAME.run/` beside `out`, among it a copy of the events;
    the next call goes on from there and removes it at the end.

    Args:
        trained: the checkpoint that was trained on the training part.
        settings, parents: of the manifest.

    Returns:
        An artefact of kind "checkpoint". Figures: those of `write_compressed`; epochs (0 in closed
        form); events, the number trained on; chosen_by, the metric that chose the epochs, or None.
    """
    folder = run_folder_of(out)
    whole = merge_parts(dataset, folder / "dataset")
    epochs, chosen_by = _epochs(recipe, trained)
    _announce(recipe, epochs, chosen_by, len(whole.train))
    key = checkpoint_key(recipe, whole, epochs)
    if not reuse(folder / "checkpoint", "checkpoint", key):
        train(recipe, whole, folder / "checkpoint", epochs=epochs, label="refit")
    source = load_checkpoint(folder / "checkpoint", whole)
    with publish(out, "checkpoint", settings, parents, STAGE_VERSION) as draft:
        draft.figures |= write_compressed(recipe, whole, source, draft.path, folder / "steps")
        draft.figures |= {"epochs": epochs or 0, "events": len(whole.train), "chosen_by": chosen_by}
    shutil.rmtree(folder, ignore_errors=True)
    return open_artifact(out, "checkpoint", verify=False)


def _epochs(recipe: Recipe, trained: Artifact) -> tuple[int | None, str | None]:
    """How many epochs to train, None in closed form, and the metric that chose them, if one did."""
    if not model_class(recipe.model.source).learns:
        return None, None
    if f"best_{recipe.train.metric}" in trained.figures:
        return int(trained.figures["best_epoch"]), recipe.train.metric
    return recipe.train.epochs, None


def _announce(recipe: Recipe, epochs: int | None, chosen_by: str | None, events: int) -> None:
    if epochs is None:
        say(f"refit: {recipe.model.name} is fitted again on all {events:,} events")
    elif chosen_by:
        say(f"refit: epochs {epochs}, as {chosen_by} was best on validation, on all {events:,} events")
    else:
        say(f"refit: validation chose no epoch, so all {epochs} are trained, on all {events:,} events")
