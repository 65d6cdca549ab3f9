"""What of a model can be evaluated in advance: its rows of users, history items and candidates."""

from __future__ import annotations

import numpy as np
import torch

from app.bundle.format.layout import Array
from app.models.base import Model, RowKind
from app.models.rows import BLOCK, rows_of


def static_rows(model: Model) -> dict[str, Array]:
    """The rows "user" (users, Du), "item" (items, R) and "history" (items, Dh), float32.

    Where an item has the same rows in a history, they are the same array.

    Ids without a training event have the rows of the unknown id with their own content.

    Args:
        model: in evaluation mode, on the CPU.
    """
    kinds: tuple[RowKind, ...] = ("user", "item", "history")
    rows: dict[str, Array] = {kind: _every(model, kind) for kind in kinds}
    if rows["item"].size and np.array_equal(rows["item"], rows["history"]):
        rows["history"] = rows["item"]
    return rows


def _every(model: Model, kind: RowKind) -> Array:
    count = model.inputs.users if kind == "user" else model.inputs.items
    width = rows_of(model, kind, torch.zeros(1, dtype=torch.int64)).shape[1]
    rows = np.empty((count, width), np.float32)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        rows[start:stop] = rows_of(model, kind, torch.arange(start, stop)).numpy()
    return rows
