"""Compression: prune the dense part, evaluate the static rows, store them narrow.

Rows take nearly all the room of a ranking model. They are evaluated after pruning and stored
as they will be served, so that evaluating the compressed checkpoint measures what is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from app.artifact import Artifact, open_artifact, publish
from app.bundle.export.static_rows import static_rows
from app.compression.prune import prune
from app.data.dataset import Array, Dataset
from app.recipe import Recipe
from app.tables.rows import Precision, Rows, row_bytes
from app.terminal.console import progress
from app.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

STAGE_VERSION = 3  # raise it when the same checkpoint and settings come to give other files


def compress(recipe: Recipe, dataset: Dataset, checkpoint: Path, out: Path) -> Artifact:
    """Compress the checkpoint at `checkpoint` as [compress] says, into another at `out`.

    Returns:
        An artefact of kind "checkpoint"; its figures are those of `write_compressed`.

    Raises:
        DataError: a row holds NaN or an infinity: training diverged.
    """
    with progress("compress"):
        source = load_checkpoint(checkpoint, dataset)
        parents = {"checkpoint": source.artifact.digest}
        with publish(out, "checkpoint", recipe.part("compress"), parents, STAGE_VERSION) as draft:
            draft.figures |= write_compressed(recipe, source, draft.path)
    return open_artifact(out, "checkpoint", verify=False)


def write_compressed(recipe: Recipe, source: Checkpoint, folder: Path) -> dict[str, Any]:
    """Write a checkpoint, compressed as [compress] says, into the folder of a Draft.

    A model that is not quantisable keeps float32 rows. [compress] dense takes effect at export.

    Args:
        source: its model is pruned in place.

    Returns:
        rows (precision), group (columns of a scale), bytes_before and bytes_after of the rows, row_error
        {name: root mean square error over that of the values}, pruned (share of dense weights that are zero).
    """
    pruned = prune(source.model, recipe.compress.prune)
    rows = static_rows(source.model)
    precision: Precision = recipe.compress.rows if source.model.quantisable else "float32"
    save_checkpoint(
        folder,
        source.model,
        source.name,
        source.hyperparameters,
        source.trained,
        rows,
        precision,
        recipe.compress.group,
        source.curve,
    )
    return _figures(rows, folder / "rows") | {
        "rows": precision,
        "group": recipe.compress.group,
        "pruned": pruned,
    }


def _figures(rows: Mapping[str, Array], folder: Path) -> dict[str, Any]:
    stored = {name: Rows.open(folder, name) for name in rows}
    return {
        "bytes_before": sum(len(r) * row_bytes(r.width, "float32") for r in stored.values() if not r.same_as),
        "bytes_after": sum(r.bytes for r in stored.values()),
        "row_error": {name: _error(values, stored[name]) for name, values in rows.items() if values.size},
    }


def _error(values: Array, stored: Rows) -> float:
    """Root mean square error of the stored rows over the root mean square of the values."""
    error = total = 0.0
    for start in range(0, len(values), 1 << 16):
        block = values[start : start + (1 << 16)]
        error += float(np.square(block - stored.block(start, start + len(block)), dtype=np.float64).sum())
        total += float(np.square(block, dtype=np.float64).sum())
    return (error / total) ** 0.5 if total else 0.0
