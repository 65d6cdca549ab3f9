"""What of a model can be evaluated in advance: its rows of users, history items and candidates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from app.bundle.format.layout import Array
from app.models.base import Model

BLOCK = 1 << 14  # ids evaluated at a time


def static_rows(model: Model, *, unknown_is_trained: bool) -> dict[str, Array]:
    """The rows "user" (users, Du), "history" (items, Dh) and "item" (items, R), float32.

    Args:
        model: in evaluation mode, on the CPU.
        unknown_is_trained: whether training gave the unknown user (row 0) a meaning; else it
            gets the mean of the known users.
    """
    inputs = model.inputs
    user = _evaluate(model.user_rows, inputs.users)
    if not unknown_is_trained and len(user) > 1:
        user[0] = user[1:].mean(0)
    return {
        "user": user,
        "history": _evaluate(model.history_rows, inputs.items),
        "item": _evaluate(model.item_rows, inputs.items),
    }


@torch.no_grad()
def _evaluate(rows: Callable[[Tensor], Tensor], count: int) -> Array:
    width = rows(torch.zeros(1, dtype=torch.int64)).shape[1]
    found = np.empty((count, width), np.float32)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        found[start:stop] = rows(torch.arange(start, stop)).float().numpy()
    return found
