"""Compression: the steps that the recipe lists, one after another, then rows as they are stored.

Rows take nearly all the room of a ranking model. They are stored as they will be served, so that evaluating
the compressed checkpoint measures what is served.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from app.artifact import Artifact, open_artifact, publish
from app.bundle.export.static_rows import static_rows
from app.compression.rows import as_stored, values_of
from app.compression.steps import apply_step
from app.compression.work import Work
from app.data.dataset import Array, Dataset
from app.data.merged import merge_parts
from app.evaluation.compare import kept
from app.evaluation.measure import Measurement
from app.evaluation.scorer import ModelScorer
from app.evaluation.validate import validated
from app.recipe import Recipe
from app.tables.rows import Rows
from app.tables.write import write_stores
from app.terminal.console import progress
from app.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from app.training.train import run_folder_of

STAGE_VERSION = 4  # raise it when the same checkpoint and settings come to give other files
JUDGED_USERS = 5000  # validation users that are ranked after each step


def compress(
    recipe: Recipe, dataset: Dataset, checkpoint: Path, out: Path, *, judge: bool = True
) -> Artifact:
    """Compress the checkpoint at `checkpoint` as [compress] says, into another at `out`.

    What an interrupted call has trained lies in `.NAME.run/` beside `out`; the next one goes on from there.

    Args:
        judge: whether validation users are ranked after each step; False in a search, which ranks its own.

    Returns:
        An artefact of kind "checkpoint"; its figures are those of `write_compressed`.

    Raises:
        DataError: a row holds NaN or an infinity: training diverged.
        RecipeError: a step that the model cannot take; it is named.
    """
    source = load_checkpoint(checkpoint, dataset)
    parents, scratch = {"checkpoint": source.artifact.digest}, run_folder_of(out)
    with publish(out, "checkpoint", recipe.part("compress"), parents, STAGE_VERSION) as draft:
        draft.figures |= write_compressed(recipe, dataset, source, draft.path, scratch, judge=judge)
    shutil.rmtree(scratch, ignore_errors=True)
    return open_artifact(out, "checkpoint", verify=False)


def write_compressed(
    recipe: Recipe,
    dataset: Dataset,
    source: Checkpoint,
    folder: Path,
    scratch: Path,
    *,
    judge: bool = True,
) -> dict[str, Any]:
    """Write a checkpoint, compressed as [compress] says, into the folder of a Draft.

    A model that is not quantisable keeps float32 rows. [compress] dense takes effect at export.

    Args:
        source: its model is changed in place.
        scratch: where steps leave their files.

    Returns:
        rows (precision of those that are no codes), group (columns of a scale), bytes_before and bytes_after
        of the rows, row_error {name: root mean square error over that of the values}, and steps, a list of
        {step, seconds, bytes of the rows after it, row_error, kept on validation (see `compare.kept`), and
        what the step says}.
    """
    if recipe.train.valid_too and recipe.compress.steps and len(dataset.valid):
        # The weights have learned the validation part, which can no longer choose an epoch of a step.
        dataset = merge_parts(dataset, scratch / "dataset", test=False)
    before = static_rows(source.model)
    work = Work(recipe, dataset, source, scratch, source.model, source.hyperparameters, dict(before))
    judged = judge and bool(recipe.compress.steps)
    full = _judged(work, ModelScorer(work.model)) if judged else None
    steps = [_step(name, work, full) for name in recipe.compress.steps]
    with progress("compress"):
        save_checkpoint(
            folder,
            work.model,
            source.name,
            work.hyperparameters,
            source.trained,
            {name: as_stored(rows) for name, rows in work.rows.items()},
            work.precision,
            recipe.compress.group,
            source.curve,
        )
    stored = _stored_figures(work, {name: Rows.open(folder / "rows", name) for name in work.rows})
    return {
        "rows": work.precision,
        "group": recipe.compress.group,
        "bytes_before": sum({id(rows): rows.nbytes for rows in before.values()}.values()),
        "bytes_after": stored["bytes"],
        "row_error": stored["row_error"],
        "steps": steps,
    }


def _step(name: str, work: Work, full: Measurement | None) -> dict[str, Any]:
    """Apply a step and measure what it leaves, stored as if it were the last one."""
    start = time.monotonic()
    figures = apply_step(name, work)
    seconds = round(time.monotonic() - start, 2)
    folder = work.folder / f"rows after {name}"
    rows = {kind: as_stored(values) for kind, values in work.rows.items()}
    write_stores(folder, rows, work.precision, work.recipe.compress.group)
    stored = {kind: Rows.open(folder, kind) for kind in rows}
    shares = {}
    if full is not None and (left := _judged(work, ModelScorer(work.model, stored))):
        shares = kept(left, full, work.recipe.evaluate.bootstrap, work.recipe.seed)
    return {"step": name, "seconds": seconds, "kept": shares, **_stored_figures(work, stored), **figures}


def _judged(work: Work, scorer: ModelScorer) -> Measurement | None:
    return validated(work.recipe, work.dataset, scorer, JUDGED_USERS, work.recipe.seed)


def _stored_figures(work: Work, stored: Mapping[str, Rows]) -> dict[str, Any]:
    errors = {
        kind: _error(values, stored[kind])
        for kind, rows in work.rows.items()
        if (values := values_of(rows)).size
    }
    return {"bytes": sum(rows.bytes for rows in stored.values()), "row_error": errors}


def _error(values: Array, stored: Rows) -> float:
    """Root mean square error of the stored rows over the root mean square of the values."""
    error = total = 0.0
    for start in range(0, len(values), 1 << 16):
        block = values[start : start + (1 << 16)]
        error += float(np.square(block - stored.block(start, start + len(block)), dtype=np.float64).sum())
        total += float(np.square(block, dtype=np.float64).sum())
    return (error / total) ** 0.5 if total else 0.0
