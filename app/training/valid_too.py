"""Training anew on the training and the validation part together, once validation has chosen the epochs."""

from __future__ import annotations

import shutil
from pathlib import Path

from app.artifact import Artifact, open_artifact, publish, reuse
from app.data.dataset import Dataset
from app.data.merged import merge_parts
from app.models.discovery import model_class
from app.recipe import Recipe
from app.terminal.console import say
from app.training.checkpoint import copy_files
from app.training.task import STAGE_VERSION
from app.training.train import checkpoint_key, run_folder_of, train


def train_valid_too(recipe: Recipe, dataset: Dataset, chosen: Artifact, out: Path) -> Artifact:
    """Publish at `out` a checkpoint that has learned from both parts, for the epochs that were best.

    A model in closed form is fitted to both. Where validation chose no epoch, all are trained. The test part
    has no say in it. What an interrupted call has done lies in `.NAME.run/` beside `out`.

    Args:
        chosen: the checkpoint that was trained on the training part alone.

    Returns:
        The artefact; its figures are those of `chosen`, and events, the number trained on.
    """
    folder = run_folder_of(out)
    both = merge_parts(dataset, folder / "dataset", test=False)
    epochs = None
    if model_class(recipe.model.source).learns:
        epochs = int(chosen.figures["best_epoch"]) or recipe.train.epochs
    how = f"{epochs} epochs" if epochs else "fitted again"
    say(f"train: {how} on all {len(both.train):,} events before the test part")
    key = checkpoint_key(recipe, both, epochs)
    made = reuse(folder / "checkpoint", "checkpoint", key)
    made = made or train(recipe, both, folder / "checkpoint", epochs=epochs, label="both parts")
    parents = {"dataset": dataset.artifact.digest, "checkpoint": chosen.digest}
    with publish(out, "checkpoint", {"valid_too": True}, parents, STAGE_VERSION) as draft:
        copy_files(made, draft)
        shutil.copyfile(chosen.path / "curve.json", draft.path / "curve.json")
        draft.figures |= {**chosen.figures, "events": len(both.train)}
    shutil.rmtree(folder, ignore_errors=True)
    return open_artifact(out, "checkpoint", verify=False)
