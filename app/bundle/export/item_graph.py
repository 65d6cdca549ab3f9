"""The graph that gives a new item its rows: content features in, what `item_rows` gives out.

A new item has no embedding of its own: it gets that of row 0, and its content does the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from app.bundle.export.onnx import OPSET, TOLERANCE
from app.bundle.format.layout import ITEM_GRAPH, Array
from app.bundle.format.session import Graph
from app.errors import RayRecError
from app.models.base import Model, RowKind
from app.models.rows import content_names, unknown_row

CHECKED = 16  # items whose content the graph is checked with
KINDS: tuple[RowKind, ...] = ("item", "history")  # of the rows that the graph gives, side by side


class _NewItem(nn.Module):
    """(1, F) and (1, K) content, those that have a width -> (1, R + Dh): rows of an unknown item.

    Where rows are stored by coefficients, these: a basis is orthonormal.
    """

    def __init__(self, model: Model, bases: Mapping[str, Array]) -> None:
        super().__init__()
        self.model = model
        self.bases = {kind: torch.from_numpy(np.array(basis)) for kind, basis in bases.items()}
        self.names = content_names(model, "item")

    def forward(self, *content: Tensor) -> Tensor:
        features = dict(zip(self.names, content, strict=True))
        rows = [unknown_row(self.model, kind, features) for kind in KINDS]
        pairs = zip(KINDS, rows, strict=True)
        return torch.cat([r @ self.bases[k].T if k in self.bases else r for k, r in pairs], -1)


def write_item_graph(model: Model, folder: Path, bases: Mapping[str, Array] | None = None) -> int:
    """Write item.onnx, unless rows do not depend on an item's content; returns its bytes, 0 without.

    Args:
        model: in evaluation mode, on the CPU.
        bases: (d, D) by name of rows that are stored by coefficients.

    Raises:
        RayRecError: the graph differs from the model by more than 1e-4.
    """
    new_item = _NewItem(model, bases or {}).eval()
    examples = _examples(model, new_item.names)
    with torch.no_grad():
        expected = np.concatenate([new_item(*example).numpy() for example in examples])
    if np.abs(expected - expected[0]).max(initial=0) == 0:
        return 0
    path = folder / ITEM_GRAPH
    _trace(new_item, examples[0], path)
    _check(path, new_item, examples, expected)
    return path.stat().st_size


def _examples(model: Model, names: list[str]) -> list[tuple[Tensor, ...]]:
    """The content of the unknown item and of some others."""
    rows = np.unique(np.linspace(0, model.inputs.items - 1, CHECKED).astype(np.int64))
    return [tuple(getattr(model, name)[row : row + 1] for name in names) for row in rows.tolist()]


def _trace(new_item: _NewItem, example: tuple[Tensor, ...], path: Path) -> None:
    whole = path.with_suffix(".whole")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter is deprecated
        torch.onnx.export(
            new_item,
            example,
            whole,
            input_names=new_item.names,
            output_names=["output"],
            opset_version=OPSET,
            dynamo=False,
        )
    # What does not depend on the content, such as the look-up in a table of all items, is done once.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(whole), options, providers=["CPUExecutionProvider"])
    whole.unlink()


def _check(path: Path, new_item: _NewItem, examples: list[tuple[Tensor, ...]], expected: Array) -> None:
    graph = Graph(path, 1)
    feeds = [dict(zip(new_item.names, map(Tensor.numpy, example), strict=True)) for example in examples]
    rows = np.concatenate([graph.run({n: v for n, v in feed.items() if n in graph.inputs}) for feed in feeds])
    worst = float((np.abs(rows - expected) / np.maximum(1, np.abs(expected))).max(initial=0))
    if not worst <= TOLERANCE:
        raise RayRecError(
            f"the ONNX graph differs from the model by {worst:.2g}",
            where=ITEM_GRAPH,
            remedy="item_rows and history_rows must use item_dense and item_category by item id",
        )
