"""What lies beside a file that holds numbers alone, and scoring with both.

    description.json   the inputs in their order (name, type, shape, meaning), and what a caller must know
    vocabulary.json    the ids of "user" and "item" and the event types "history_event" as lists: the index in
                       a list is the row that the file takes; index 0, "", stands for ids that are not known

A history has no events on items that are not known, is sorted by time and ends with the most recent event.
Where the description says "candidates", the file scores just as many for one request, and a history has just
"history" events: what is shorter is padded with row 0, histories in front, candidates behind.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from app.bundle.export.formats import Score
from app.bundle.export.source import ExportSource
from app.bundle.export.whole_model.model import Run
from app.bundle.export.whole_model.request_inputs import DESCRIPTIONS, FLOATS, described, feeds
from app.bundle.format.layout import Array, damaged
from app.bundle.request.requests import RankRequest

DESCRIPTION, VOCABULARY = "description.json", "vocabulary.json"
Json = dict[str, Any]


def write_beside(
    source: ExportSource, names: list[str], folder: Path, *, ids: str = "int64", candidates: int = 0
) -> Json:
    """Write both files into `folder`.

    Args:
        source: what is exported.
        names: the inputs of the file, in their order.
        folder: of the export.
        ids: the type of rows of ids.
        candidates: how many the file scores; 0: any number.

    Returns:
        The description.
    """
    description: Json = {
        **described(source),
        **({"candidates": candidates} if candidates else {}),
        "inputs": [_input(name, source, ids, candidates) for name in names],
    }
    dataset = source.dataset
    lists: dict[str, Iterable[str]] = {
        "user": dataset.users,
        "item": dataset.items,
        "history_event": dataset.schema.events,
    }
    known = {name: list(lists[name]) for name in lists if name in names}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    (folder / VOCABULARY).write_text(json.dumps(known, ensure_ascii=False) + "\n")
    return description


def _input(name: str, source: ExportSource, ids: str, candidates: int) -> Json:
    schema, fixed = source.dataset.schema, described(source)
    any_length = fixed["reads"] != "recent" and not candidates
    shapes: dict[str, list[int | str]] = {
        "user": [],
        "item": [candidates or "C"],
        "context": [schema.context_width],
    }
    shape: list[int | str] = [
        1 if candidates else "B",
        *shapes.get(name, ["L" if any_length else fixed["history"]]),
    ]
    if name in FLOATS:
        return {"name": name, "type": "float32", "shape": shape, "meaning": DESCRIPTIONS[name]}
    meaning = "rows of " + DESCRIPTIONS[name].replace('""', "row 0")
    return {"name": name, "type": ids, "shape": shape, "meaning": meaning}


def score_with(run: Run, folder: Path) -> Score:
    """Score requests with a file in its runtime.

    Args:
        run: the inputs of the description, by name, to scores (B, C).
        folder: of the export.

    Raises:
        ArtifactError: description or vocabulary is damaged.
    """
    description, vocabulary = (_read(folder / name) for name in (DESCRIPTION, VOCABULARY))
    rows = {name: {key: row for row, key in enumerate(ids) if key} for name, ids in vocabulary.items()}
    rows["history"] = rows["item"]
    kinds = {entry["name"]: entry["type"] for entry in description["inputs"]}
    size = description.get("candidates", 0)

    def score(request: RankRequest) -> dict[str, float]:
        texts = feeds(request, description, padded=size > 0, known=rows["item"])
        values = {name: _numbers(texts[name], rows.get(name), kind) for name, kind in kinds.items()}
        scores = [run({**values, "item": block}) for block in _blocks(values["item"], size)]
        return dict(zip(request.items, np.concatenate(scores, 1)[0].tolist(), strict=False))

    return score


def _read(path: Path) -> Json:
    try:
        content: Json = json.loads(path.read_bytes())
        return content
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from None


def _numbers(values: Array, rows: dict[str, int] | None, kind: str) -> Array:
    """Texts as their rows, 0 where they are not known; floats as they are."""
    if rows is None:
        return values
    return np.array([rows.get(text, 0) for text in values.ravel()], kind).reshape(values.shape)


def _blocks(items: Array, size: int) -> Iterator[Array]:
    """Candidates (1, C) as they are, or in blocks (1, size), the last one padded with row 0."""
    if not size:
        yield items
        return
    for start in range(0, items.shape[1], size):
        block = items[:, start : start + size]
        yield np.pad(block, ((0, 0), (0, size - block.shape[1])))
