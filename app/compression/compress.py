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
from app.compression.packed import CodedRows, Packed, as_stored, pack, width_of
from app.compression.steps import apply_step
from app.compression.work import Work
from app.data.dataset import Array, Dataset
from app.data.merged import merge_parts
from app.evaluation.evaluate import quality_kept
from app.evaluation.scorer import ModelScorer
from app.recipe import Recipe
from app.tables.form import Precision, row_bytes
from app.tables.rows import Rows
from app.terminal.console import progress
from app.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from app.training.train import run_folder_of

STAGE_VERSION = 4  # raise it when the same checkpoint and settings come to give other files


def compress(recipe: Recipe, dataset: Dataset, checkpoint: Path, out: Path) -> Artifact:
    """Compress the checkpoint at `checkpoint` as [compress] says, into another at `out`.

    What an interrupted call has trained lies in `.NAME.run/` beside `out`; the next one goes on from there.

    Returns:
        An artefact of kind "checkpoint"; its figures are those of `write_compressed`.

    Raises:
        DataError: a row holds NaN or an infinity: training diverged.
        RecipeError: a step that the model cannot take; it is named.
    """
    source = load_checkpoint(checkpoint, dataset)
    parents, scratch = {"checkpoint": source.artifact.digest}, run_folder_of(out)
    with publish(out, "checkpoint", recipe.part("compress"), parents, STAGE_VERSION) as draft:
        draft.figures |= write_compressed(recipe, dataset, source, draft.path, scratch)
    shutil.rmtree(scratch, ignore_errors=True)
    return open_artifact(out, "checkpoint", verify=False)


def write_compressed(
    recipe: Recipe, dataset: Dataset, source: Checkpoint, folder: Path, scratch: Path
) -> dict[str, Any]:
    """Write a checkpoint, compressed as [compress] says, into the folder of a Draft.

    A model that is not quantisable keeps float32 rows. [compress] dense takes effect at export.

    Args:
        source: its model is changed in place.
        scratch: where steps that train leave their files.

    Returns:
        rows (precision of those that are no codes), group (columns of a scale), bytes_before and bytes_after
        of the rows, row_error {name: root mean square error over that of the values}, and steps, a list of
        {step, seconds, bytes of the rows after it, kept (see `quality_kept`), and what the step says}.
    """
    if recipe.train.valid_too and recipe.compress.steps and len(dataset.valid):
        # The weights have learned the validation part, which can no longer choose an epoch of a step.
        dataset = merge_parts(dataset, scratch / "dataset", test=False)
    before = static_rows(source.model)
    work = Work(recipe, dataset, source, scratch, source.model, source.hyperparameters, dict(before))
    precision: Precision = recipe.compress.rows if work.model.quantisable else "float32"
    steps = [_step(name, work, precision) for name in recipe.compress.steps]
    with progress("compress"):
        save_checkpoint(
            folder,
            work.model,
            source.name,
            work.hyperparameters,
            source.trained,
            {name: as_stored(values) for name, values in work.rows.items()},
            precision,
            recipe.compress.group,
            source.curve,
        )
    figures = {"rows": precision, "group": recipe.compress.group, "steps": steps}
    return _figures(before, work.rows, folder / "rows") | figures


def _step(name: str, work: Work, precision: Precision) -> dict[str, Any]:
    """Apply a step and measure what it leaves, as if it were the last one."""
    start = time.monotonic()
    figures = apply_step(name, work)
    seconds = round(time.monotonic() - start, 2)
    group = work.recipe.compress.group
    size = sum(_bytes(rows, precision, group) for rows in _distinct(work.rows))
    return {"step": name, "seconds": seconds, "bytes": size, "kept": _kept(work, precision), **figures}


def _kept(work: Work, precision: Precision) -> dict[str, list[float]]:
    """The share of the uncompressed model's quality on validation."""
    before = ModelScorer(load_checkpoint(work.source.artifact.path, work.dataset).model)
    pack(work.model, work.rows, precision, work.recipe.compress.group)
    try:
        return quality_kept(work.recipe, work.dataset, ModelScorer(work.model), before)
    finally:
        work.model.packed.clear()


def _bytes(rows: Packed, precision: Precision, group: int) -> int:
    if isinstance(rows, CodedRows):
        return rows.codes.bytes
    return len(rows) * row_bytes(width_of(rows), precision, group)


def _distinct(rows: Mapping[str, Packed]) -> list[Packed]:
    """Without those that are the same for another kind."""
    return list({id(values): values for values in rows.values()}.values())


def _figures(before: Mapping[str, Packed], rows: Mapping[str, Packed], folder: Path) -> dict[str, Any]:
    stored = {name: Rows.open(folder, name) for name in rows}
    return {
        "bytes_before": sum(_bytes(rows, "float32", 0) for rows in _distinct(before)),
        "bytes_after": sum(r.bytes for r in stored.values()),
        "row_error": {
            name: _error(values, stored[name])
            for name, values in rows.items()
            if isinstance(values, np.ndarray) and values.size
        },
    }


def _error(values: Array, stored: Rows) -> float:
    """Root mean square error of the stored rows over the root mean square of the values."""
    error = total = 0.0
    for start in range(0, len(values), 1 << 16):
        block = values[start : start + (1 << 16)]
        error += float(np.square(block - stored.block(start, start + len(block)), dtype=np.float64).sum())
        total += float(np.square(block, dtype=np.float64).sum())
    return (error / total) ** 0.5 if total else 0.0
