"""The folder that `rayrec serve` and `rayrec rank` take: ranking, candidates, histories, filters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from app.artifact import Draft
from app.bundle.export.card import card
from app.bundle.export.first_stage import write_retrieval
from app.bundle.export.formats import Score
from app.bundle.export.from_dataset import (
    default_event,
    events_of,
    popularity_of,
    write_features,
    write_histories,
    write_ids,
)
from app.bundle.export.item_graph import write_item_graph
from app.bundle.export.onnx import OPSET, write_graph
from app.bundle.export.source import ExportSource
from app.bundle.format.layout import MODEL_GRAPH, USER_GRAPH, Info, compact
from app.bundle.request.requests import RankRequest
from app.bundle.runtime import Ranker
from app.tables.form import row_bytes
from app.tables.rows import Rows


def write(source: ExportSource, draft: Draft, *, retrieval: bool = True) -> None:
    """Write a bundle.

    Its figures are those of the source; bytes {"float32": what it would take uncompressed, "bundle":
    what it takes}; dense_error; and retrieval as write_retrieval says.

    Args:
        source: what is exported; the bundle knows the events of all parts of its data set.
        draft: of the artefact.
        retrieval: with columns, candidates and an index; without them every item is scored.
    """
    recipe, dataset, checkpoint, folder = source.recipe, source.dataset, source.checkpoint, draft.path
    info = _info(source)
    (folder / "bundle.json").write_bytes(msgspec.json.encode(info))
    rows = source.write_rows(folder / "rows")
    scores = not checkpoint.model.retrieves
    path = folder / (MODEL_GRAPH if scores else USER_GRAPH)
    int8, bases = recipe.compress.dense == "int8", source.bases
    dense = write_graph(checkpoint.model, rows, path, scores=scores, int8=int8, bases=bases)
    dense["dense_float32_bytes"] += write_item_graph(checkpoint.model, folder, bases)
    write_ids(dataset, checkpoint.trained, folder)
    popularity = popularity_of(dataset)
    np.save(folder / "popularity.npy", compact(popularity))
    write_features(dataset, folder)
    write_histories(dataset, folder / "history", info.history)
    first_stage = {}
    if retrieval:
        first_stage = write_retrieval(recipe, dataset, checkpoint.model, info, popularity, folder)
    stages = {"rows": rows["item"].precision, "dense": recipe.compress.dense, **first_stage}
    text = card(info, dataset, checkpoint.hyperparameters, source.figures, stages)
    (folder / "card.md").write_text(text)
    whole = {name: bases[name].shape[1] if name in bases else stored.width for name, stored in rows.items()}
    sizes = _bytes(folder, rows, whole, dense["dense_float32_bytes"])
    draft.figures |= {**source.figures, "bytes": sizes}
    draft.figures |= {"dense_error": dense["dense_error"], "retrieval": first_stage}


def read(path: Path) -> Score:
    """The ranking of a bundle at `path`."""
    ranker = Ranker.open(path)

    def score(request: RankRequest) -> dict[str, float]:
        return {scored.item: scored.score for scored in ranker.rank([request])[0].items}

    return score


def _info(source: ExportSource) -> Info:
    recipe, schema = source.recipe, source.dataset.schema
    return Info(
        name=recipe.export.name or recipe.name,
        version=recipe.export.version,
        model=source.checkpoint.name,
        users=schema.users,
        items=schema.items,
        history=events_of(source.checkpoint.model, source.dataset),
        events=schema.events,
        default_event=default_event(source.dataset),
        context=list(schema.context),
        context_bounds=schema.context_bounds,
        session_gap=schema.session_gap,
        timed=schema.timed,
        opset=OPSET,
        reads=source.checkpoint.model.reads,
    )


def _bytes(
    folder: Path, rows: Mapping[str, Rows], widths: Mapping[str, int], dense_float32: float
) -> dict[str, Any]:
    """Size of the bundle without its manifest, and what it would be with everything float32 and whole."""
    total = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    dense = sum(p.stat().st_size for p in folder.glob("*.onnx"))
    own = {name: r for name, r in rows.items() if not r.same_as}
    saved = sum(len(r) * row_bytes(widths[name], "float32") - r.bytes for name, r in own.items())
    return {"float32": total + saved + int(dense_float32) - dense, "bundle": total}
