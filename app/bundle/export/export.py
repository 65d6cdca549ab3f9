"""Export: a checkpoint becomes a bundle that runs without torch and Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from app.artifact import Artifact, Draft, open_artifact, publish
from app.bundle.export.card import card
from app.bundle.export.first_stage import write_retrieval
from app.bundle.export.from_dataset import popularity_of, write_features, write_histories, write_ids
from app.bundle.export.item_graph import write_item_graph
from app.bundle.export.onnx import OPSET, write_graphs
from app.bundle.export.static_rows import static_rows
from app.bundle.format.layout import ROWS, Array, Info, compact
from app.data.dataset import Dataset
from app.models.base import Model
from app.recipe import Recipe
from app.tables.rows import Rows, row_bytes, write_rows
from app.terminal.console import progress

STAGE_VERSION = 2  # raise it when the same checkpoint and settings come to give another bundle


class Trained(Protocol):
    """What export needs of a checkpoint."""

    @property
    def name(self) -> str:
        """Of the model."""
        ...

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Of the model."""
        ...

    @property
    def model(self) -> Model:
        """In evaluation mode, on the CPU."""
        ...

    @property
    def trained(self) -> dict[str, Array]:
        """For "user" and "item" a bool an id: whether the weights were trained on an event of it."""
        ...

    @property
    def rows(self) -> dict[str, Rows] | None:
        """Stored rows by name where it is compressed."""
        ...


def export(
    recipe: Recipe,
    dataset: Dataset,
    checkpoint: Trained,
    out: Path,
    settings: Mapping[str, Any],
    parents: Mapping[str, str],
    figures: Mapping[str, Any],
    *,
    retrieval: bool = True,
) -> Artifact:
    """Write the bundle of a checkpoint at `out`.

    Args:
        recipe: its [export] names the bundle, its [compress] sets the dense precision.
        dataset: whose training part the checkpoint was trained on; the bundle knows all parts.
        checkpoint: rows as they are where it is compressed, else float32.
        settings, parents: of the manifest.
        figures: of the report: quality of this checkpoint, and of the baselines.
        retrieval: with columns, candidates and an index; without them every item is scored.

    Returns:
        An artefact of kind "bundle"; figures: those given, bytes {"float32": what it would
        take uncompressed, "bundle": what it takes}, and retrieval as write_retrieval says.

    Raises:
        RayRecError: the exported graph does not compute what the model does.
    """
    with progress("export"), publish(out, "bundle", settings, parents, STAGE_VERSION) as draft:
        info = _info(recipe, dataset, checkpoint.name)
        (draft.path / "bundle.json").write_bytes(msgspec.json.encode(info))
        rows = _write_rows(recipe, checkpoint, draft.path / "rows")
        int8 = recipe.compress.dense == "int8"
        dense = write_graphs(checkpoint.model, rows, draft.path, int8=int8)
        dense["dense_float32_bytes"] += write_item_graph(checkpoint.model, draft.path)
        write_ids(dataset, checkpoint.trained, draft.path)
        popularity = popularity_of(dataset)
        np.save(draft.path / "popularity.npy", compact(popularity))
        write_features(dataset, draft.path)
        write_histories(dataset, draft.path / "history")
        found = {}
        if retrieval:
            found = write_retrieval(recipe, dataset, checkpoint.model, info, popularity, draft.path)
        sizes = {"rows": rows["item"].precision, "dense": recipe.compress.dense}
        text = card(info, dataset, checkpoint.hyperparameters, figures, sizes | found)
        (draft.path / "card.md").write_text(text)
        draft.figures |= {**figures, "bytes": _bytes(draft, rows, dense["dense_float32_bytes"])}
        draft.figures |= {"dense_error": dense["dense_error"], "retrieval": found}
    return open_artifact(out, "bundle", verify=False)


def _info(recipe: Recipe, dataset: Dataset, model: str) -> Info:
    schema = dataset.schema
    kinds = np.sum([np.bincount(part.event, minlength=len(schema.events)) for part in dataset.parts], 0)
    return Info(
        name=recipe.export.name or recipe.name,
        version=recipe.export.version,
        model=model,
        users=schema.users,
        items=schema.items,
        history=schema.history,
        events=schema.events,
        default_event=int(np.argmax(kinds[1:])) + 1,
        context=list(schema.context),
        opset=OPSET,
    )


def _write_rows(recipe: Recipe, checkpoint: Trained, folder: Path) -> dict[str, Rows]:
    if checkpoint.rows is not None:
        for name, rows in checkpoint.rows.items():
            rows.copy_to(folder, name)
    else:
        for name, values in static_rows(checkpoint.model).items():
            write_rows(folder, name, values, "float32")
    return {name: Rows.open(folder, name) for name in ROWS}


def _bytes(draft: Draft, rows: Mapping[str, Rows], dense_float32: float) -> dict[str, int]:
    """Size of the bundle without its manifest, and what it would be with everything float32."""
    total = sum(p.stat().st_size for p in draft.path.rglob("*") if p.is_file())
    dense = sum(p.stat().st_size for p in draft.path.glob("*.onnx"))
    saved = sum(len(r) * row_bytes(r.width, "float32") - r.bytes for r in rows.values())
    return {"float32": total + saved + int(dense_float32) - dense, "bundle": total}
