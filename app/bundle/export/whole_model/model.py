"""A whole model as one torch module: rows of ids go in, scores come out; for formats that hold numbers alone.

The tables of gathered rows are inside. Inputs are those of DESCRIPTIONS that the model uses, with the rows of
ids instead of their texts: int64, 0 for an id that is not known and for padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from app.bundle.export.served import SHAPES, Served, example_ids, input_names
from app.bundle.export.source import ExportSource
from app.bundle.export.whole_model.request_inputs import DESCRIPTIONS
from app.bundle.format.layout import Array
from app.errors import DataError, RayRecError
from app.models.base import Model
from app.tables.rows import Rows

TOLERANCE = 1e-3  # of a score, relative where it exceeds 1; other runtimes sum in another order
Run = Callable[[dict[str, Array]], Array]  # the values of the inputs -> scores (B, C)
_TABLES = {"user": "user", "items": "item", "history": "history"}  # input of Served -> whose rows


class WholeModel(nn.Module):
    """A model with its rows.

    Args:
        model: in evaluation mode, on the CPU.
        rows: its stored rows "user", "history" and "item".
        bases: of those that are coefficients, what these are multiplied by.

    Attributes:
        names: the inputs that change a score, and always the candidates and the history, which gives L.
    """

    def __init__(self, model: Model, rows: Mapping[str, Rows], bases: Mapping[str, Array]) -> None:
        super().__init__()
        self.served = Served(model, input_names(model, rows), bases).eval()
        self._table = {kind: rows[kind].same_as or kind for kind in _TABLES.values()}
        for kind in _TABLES.values():
            if rows[kind].width and self._table[kind] == kind:
                self.register_buffer(f"{kind}_table", torch.from_numpy(np.array(rows[kind].all())))
        inputs = {**dict.fromkeys(self.served.names), "item": None, "history": None}
        self.names = [name for name in DESCRIPTIONS if name in inputs]
        self.names = self._used()

    def forward(self, *values: Tensor) -> Tensor:
        """Logits (B, C)."""
        inputs = dict(zip(self.names, values, strict=True))
        history = inputs["history"]
        inner = {
            "history_event": torch.zeros_like(history),
            "history_age": torch.zeros_like(history, dtype=torch.float32),
            "history_gap": torch.zeros_like(history, dtype=torch.float32),
            "context": history.new_zeros((history.shape[0], self.served.model.inputs.context)).float(),
            **inputs,
            "history_mask": (history > 0).float(),
        }
        for name, kind in _TABLES.items():
            if name in self.served.names:
                inner[name] = F.embedding(inputs[kind], self.get_buffer(f"{self._table[kind]}_table"))
        scores: Tensor = self.served(*(inner[name] for name in self.served.names))
        return scores

    def example(self, batch: int, candidates: int, events: int) -> dict[str, Tensor]:
        """Inputs of random requests, by name; see `example_ids`."""
        arrays = example_ids(self.served.model, batch, candidates, events)
        return {name: torch.from_numpy(arrays[name]) for name in self.names}

    def examples(self) -> list[dict[str, Tensor]]:
        """Inputs of several shapes; the last are large enough that none of their sizes is taken for 1."""
        return [self.example(*shape) for shape in SHAPES]

    def _used(self) -> list[str]:
        values, seen = self.example(*SHAPES[-1]), _Seen()
        with torch.no_grad(), seen:
            self(*values.values())
        used = {name for name, value in values.items() if id(value) in seen.tensors}
        return [name for name in self.names if name in used | {"item", "history"}]


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the ids of the tensors that operators take while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensors: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.tensors.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))


def whole_model(source: ExportSource) -> WholeModel:
    """The model of an export with its rows, as they are stored where it is compressed."""
    with TemporaryDirectory() as folder:
        return WholeModel(source.checkpoint.model, source.write_rows(Path(folder)), source.bases).eval()


def check(run: Run, whole: WholeModel, examples: Iterable[dict[str, Tensor]], file: str) -> float:
    """The largest difference between a written file and the model, relative where scores exceed 1.

    Args:
        run: the file in its own runtime.
        whole: the model.
        examples: inputs by name.
        file: its name, for errors.

    Raises:
        RayRecError: they differ by more than TOLERANCE.
        DataError: the model's scores are NaN or infinite.
    """
    worst = 0.0
    for values in examples:
        with torch.no_grad():
            expected: Array = whole(*values.values()).numpy()
        if not np.isfinite(expected).all():
            raise DataError(
                "the model's scores are not finite numbers",
                where="export",
                remedy="training diverged: lower train.learning_rate, or set train.clip_norm",
            )
        scores = run({name: value.numpy() for name, value in values.items()})
        worst = max(worst, difference(scores, expected))
    if worst > TOLERANCE:
        raise RayRecError(
            f"the file's scores differ from the model's by {worst:.2g}",
            where=file,
            remedy="use the format onnx or bundle, and report the model",
        )
    return worst


def difference(scores: Array, expected: Array) -> float:
    """The largest difference of scores, relative where those expected exceed 1; NaN is infinitely far."""
    errors = np.abs(scores - expected) / np.maximum(1, np.abs(expected))
    return float(np.nan_to_num(errors, nan=np.inf).max(initial=0))
