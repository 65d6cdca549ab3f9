"""From a torch model to ONNX graphs over gathered rows, each checked against the model.

Exported by tracing (torch's older exporter): a graph takes 0.1 s where the newer one takes
3 s, and 10 s in a fresh process, which a search with many trials pays every time. What
tracing may miss, a shape taken for a constant, the check at several shapes finds.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor

from app.bundle.export.served import SHAPES, Served, example, input_names
from app.bundle.format.layout import Array
from app.bundle.format.session import Graph
from app.errors import DataError, RayRecError
from app.models.base import Model
from app.tables.rows import Rows

OPSET = 18
TOLERANCE = 1e-4


def write_graph(
    model: Model,
    rows: Mapping[str, Rows],
    path: Path,
    *,
    scores: bool,
    int8: bool,
    bases: Mapping[str, Array] | None = None,
) -> dict[str, float]:
    """Write the graph of what runs per request, at `path`.

    Args:
        model: in evaluation mode, on the CPU.
        rows: its stored rows "user", "history" and "item"; one of width 0 is no input.
        scores: whether it gives logits of candidates; else user states.
        int8: whether dense weights become int8 (dynamic quantisation).
        bases: (d, D) by name of rows that are coefficients.

    Returns:
        dense_float32_bytes, the size before quantisation, and dense_error, the largest
        change of an output by it.

    Raises:
        RayRecError: a graph differs from the model by more than 1e-4.
        DataError: the model's scores are NaN or infinite.
    """
    served = Served(model, input_names(model, rows, scores=scores), bases).eval()
    examples = [example(served, rows, *shape) for shape in SHAPES]
    _trace(served, examples[-1], path)
    figures = {"dense_float32_bytes": float(path.stat().st_size), "dense_error": 0.0}
    _check(path.name, _difference(path, served, examples), model)
    if int8:
        _quantise(path)
        figures["dense_error"] = _difference(path, served, examples)
        _check_runs(path.name, figures["dense_error"])
    return figures


def _check(file: str, difference: float, model: Model) -> None:
    if difference > TOLERANCE:
        raise RayRecError(
            f"the ONNX graph differs from the model by {difference:.2g}",
            where=file,
            remedy=f"user_state and score of {type(model).__name__} must take sizes from tensors' shapes",
        )


def _check_runs(file: str, difference: float) -> None:
    if difference == float("inf"):
        raise RayRecError(
            "the graph with int8 weights cannot be computed",
            where=file,
            remedy='set compress.dense = "float32"',
        )


def _trace(served: Served, traced: dict[str, Tensor], path: Path) -> None:
    varies = {"items": {1: "C"}}
    if served.model.reads != "recent":
        varies |= {name: {1: "L"} for name in served.names if name.startswith("history")}
    dynamic = {name: {0: "B", **varies.get(name, {})} for name in served.names}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter is deprecated, tracing warns of constants
        torch.onnx.export(
            served,
            tuple(traced.values()),
            path,
            input_names=list(served.names),
            output_names=["output"],
            dynamic_axes=dynamic,
            opset_version=OPSET,
            dynamo=False,
        )


def _difference(path: Path, served: Served, examples: Sequence[dict[str, Tensor]]) -> float:
    """Largest difference between graph and model, relative where outputs exceed 1."""
    graph, worst = Graph(path, 1), 0.0
    for values in examples:
        with torch.no_grad():
            expected: Array = served(*values.values()).numpy()
        if not np.isfinite(expected).all():
            raise DataError(
                "the model's scores are not finite numbers",
                where="export",
                remedy="training diverged: lower train.learning_rate, or set train.clip_norm",
            )
        try:
            output = graph.run({name: v.numpy() for name, v in values.items() if name in graph.inputs})
        except Exception:  # onnxruntime's own kinds: a shape that does not fit
            return float("inf")
        if output.shape != expected.shape:
            return float("inf")
        errors = np.abs(output - expected) / np.maximum(1, np.abs(expected))
        worst = max(worst, float(errors.max(initial=0)))
    return worst


def _quantise(path: Path) -> None:
    """Dense weights to int8, one scale a column; activations are scaled at run time.

    Weights use 7 bits: without VNNI the products of full int8 saturate 16 bits, and scores
    are then far off. Weights that are vectors stay as they are, because a scale for each of their
    numbers is no product that ONNX Runtime can compute, and so do the few that the context is
    multiplied by: hours, ages and counts have no scale in common.
    """
    full = path.with_suffix(".float32")
    path.rename(full)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a shape inference that dynamic shapes do not need
    try:
        quantize_dynamic(
            full,
            path,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            nodes_to_exclude=_kept_float(onnx.load(full).graph),
        )
    finally:
        root.setLevel(level)
        full.unlink()


def _kept_float(graph: onnx.GraphProto) -> list[str]:
    """Names of the multiplications by a weight of one dimension, and of the context."""
    factors = {weight.name for weight in graph.initializer if len(weight.dims) < 2} | {"context"}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    return [node.name for node in products if factors & set(node.input[:2])]
