"""The part of a model that runs per request, over gathered rows, and examples of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from app.bundle.format.layout import INPUTS, Array
from app.models.base import History, Model
from app.tables.rows import Rows

# Requests, candidates and, where histories are of any length, events of the examples; the last are traced.
SHAPES = ((1, 1, 1), (3, 5, 40), (2, 16, 7))


class Served(nn.Module):
    """The part of a model that runs per request, on the inputs that have a width.

    Rows that are stored by coefficients (app.tables.projected) are multiplied by their basis here. A user
    state is multiplied by that of the items instead, so that its products are taken with coefficients.

    Args:
        model: in evaluation mode, on the CPU.
        names: of its inputs, in their order.
        bases: (d, D) by name of rows that are coefficients.
    """

    def __init__(self, model: Model, names: Sequence[str], bases: Mapping[str, Array] | None = None) -> None:
        super().__init__()
        self.model, self.names = model, names
        self._basis = {kind: f"{kind}_basis" for kind in bases or {}}
        for kind, basis in (bases or {}).items():
            self.register_buffer(self._basis[kind], torch.from_numpy(np.array(basis)))

    def forward(self, *values: Tensor) -> Tensor:
        """Logits (B, C), or the user state (B, Q) where there are no items."""
        inputs = dict(zip(self.names, values, strict=True))
        mask = inputs["history_mask"]
        varies = self.model.reads != "recent"
        batch, length = mask.shape[0], mask.shape[1] if varies else self.model.inputs.history
        user = self._whole("user", inputs.get("user", mask.new_zeros((batch, 0))))
        rows = self._whole("history", inputs.get("history", mask.new_zeros((batch, length, 0))))
        context = inputs.get("context", mask.new_zeros((batch, 0)))
        gap = inputs.get("history_gap", mask.new_zeros((batch, 0)))
        # The mask stands for the items: a model may only ask whether there is one.
        history = History(mask, inputs["history_event"], inputs["history_age"], gap)
        state = self.model.user_state(user, rows, history, context)
        if "items" in inputs:
            return self.model.score(state, self._whole("item", inputs["items"]))
        return state @ self.get_buffer(self._basis["item"]).T if "item" in self._basis else state

    def _whole(self, kind: str, rows: Tensor) -> Tensor:
        return rows @ self.get_buffer(self._basis[kind]) if kind in self._basis else rows


def input_names(model: Model, rows: Mapping[str, Rows], *, scores: bool = True) -> list[str]:
    """The inputs that have a width, in the order of INPUTS; without `scores` there are no candidates."""
    widths = {"user": rows["user"].width, "history": rows["history"].width, "context": model.inputs.context}
    widths |= {} if model.trains_on == "sequences" else {"history_gap": 0}
    return [name for name in (INPUTS if scores else INPUTS[:-1]) if widths.get(name) != 0]


def example_ids(model: Model, batch: int, candidates: int, events: int) -> dict[str, Array]:
    """Inputs of random requests as rows of ids; histories of every length, an empty one too.

    Args:
        model: what it sees; one that reads what is recent has its own length of a history.
        batch, candidates, events: B, C and L.
    """
    inputs, rng = model.inputs, np.random.default_rng(batch)
    longest = events if model.reads != "recent" else inputs.history
    filled = np.arange(longest, 0, -1) <= np.linspace(0, longest, batch)[:, None]
    return {
        "user": rng.integers(0, inputs.users, batch),
        "history": rng.integers(1, max(2, inputs.items), filled.shape) * filled,
        "history_event": rng.integers(1, max(2, inputs.events), filled.shape) * filled,
        "history_age": (rng.random(filled.shape) * filled).astype(np.float32),
        "history_gap": (rng.random(filled.shape) * filled).astype(np.float32),
        "context": rng.random((batch, inputs.context), np.float32),
        "item": rng.integers(0, inputs.items, (batch, candidates)),
    }


def example(
    served: Served, rows: Mapping[str, Rows], batch: int, candidates: int, events: int
) -> dict[str, Tensor]:
    """The same over gathered rows, as `served` takes them."""
    arrays = example_ids(served.model, batch, candidates, events)
    gathered = {
        "user": rows["user"].gather(arrays["user"]),
        "history": rows["history"].gather(arrays["history"]),
        "history_mask": (arrays["history"] > 0).astype(np.float32),
        "items": rows["item"].gather(arrays["item"]),
    }
    return {name: torch.from_numpy({**arrays, **gathered}[name]) for name in served.names}
