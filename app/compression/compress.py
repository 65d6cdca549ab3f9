"""Compression: prune the dense part, evaluate the static rows, store them narrow.

Rows take nearly all the room of a ranking model. They are evaluated after pruning and stored
as they will be served, so that evaluating the compressed checkpoint measures what is served.
"""

from __future__ import annotations

import json
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
from app.training.checkpoint import load_checkpoint, save_checkpoint


def compress(recipe: Recipe, dataset: Dataset, checkpoint: Path, out: Path) -> Artifact:
    """Compress the checkpoint at `checkpoint` as [compress] says, into another at `out`.

    A model that is not quantisable keeps float32 rows. [compress] dense takes effect at export.

    Returns:
        An artefact of kind "checkpoint". Figures: rows (precision), bytes_before and
        bytes_after of the rows, row_error {name: root mean square error over that of the
        values}, pruned (share of dense weights that are zero).

    Raises:
        DataError: a row holds NaN or an infinity: training diverged.
    """
    with progress("compress"):
        source = load_checkpoint(checkpoint, dataset)
        parents = {"checkpoint": source.artifact.digest}
        pruned = prune(source.model, recipe.compress.prune)
        trained = recipe.train.id_dropout > 0 or not source.model.learns
        rows = static_rows(source.model, unknown_is_trained=trained)
        precision: Precision = recipe.compress.rows if source.model.quantisable else "float32"
        curve = json.loads((checkpoint / "curve.json").read_bytes())
        with publish(out, "checkpoint", recipe.part("compress"), parents) as draft:
            save_checkpoint(
                draft.path,
                source.model,
                source.name,
                source.hyperparameters,
                source.trained,
                rows,
                precision,
                curve,
            )
            draft.figures |= _figures(rows, draft.path / "rows") | {"rows": precision, "pruned": pruned}
    return open_artifact(out, "checkpoint", verify=False)


def _figures(rows: Mapping[str, Array], folder: Path) -> dict[str, Any]:
    stored = {name: Rows.open(folder, name) for name in rows}
    return {
        "bytes_before": sum(len(r) * row_bytes(r.width, "float32") for r in stored.values()),
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
