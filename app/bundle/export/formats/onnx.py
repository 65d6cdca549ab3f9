"""A single ONNX file for other runtimes: ids go in, scores come out; for models below 2 GB.

Inputs are those of the following that the model uses, for B requests, C candidates and L events:

    user (B,) item (B, C) history (B, L)   ids as text; "" pads, the most recent event is the last
    history_event (B, L)                   types of the events, "" where there is none
    history_age history_gap (B, L)         float32, as app.features.context computes them
    context (B, T)                         float32, likewise

The output `score` is (B, C). Ids that the model does not know have the row of the unknown id; events on
unknown items are no events. The file knows no histories: who calls gives them. Where the metadata says that
the model reads "all" or "events", L may be any length; of "all" each item stands once, where it came last.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnxruntime
from onnx import TensorProto, compose, helper, numpy_helper

from app.artifact import Draft, open_artifact
from app.bundle.export.formats import Score
from app.bundle.export.onnx import write_graph
from app.bundle.export.source import ExportSource
from app.bundle.export.whole_model.request_inputs import DESCRIPTIONS, FLOATS, described, feeds
from app.bundle.format.layout import damaged
from app.bundle.request.requests import RankRequest
from app.errors import RecipeError
from app.tables.rows import Rows

FILE = "model.onnx"
LARGEST = (2 << 30) - (64 << 20)  # bytes of rows and ids; protobuf ends at 2 GiB
_LABELS = "ai.onnx.ml"  # the operators that turn ids into rows
_INNER = "dense/"  # before every name of the graph over gathered rows


def write(source: ExportSource, draft: Draft) -> None:
    """Write the file; figures: bytes.

    Raises:
        RecipeError: the model is too large for one file.
    """
    with TemporaryDirectory(dir=draft.path) as name:
        folder = Path(name)
        rows = source.write_rows(folder / "rows")
        _check_size(source, rows)
        write_graph(source.checkpoint.model, rows, folder / FILE, scores=True, int8=False, bases=source.bases)
        dense = onnx.load(folder / FILE)
        onnx.save(_whole(source, dense, rows), draft.path / FILE)
    draft.figures |= {**source.figures, "bytes": {"onnx": (draft.path / FILE).stat().st_size}}


def _check_size(source: ExportSource, rows: dict[str, Rows]) -> None:
    size = sum(4 * len(stored) * stored.width for stored in rows.values())
    size += sum(len(ids.data) + 16 * len(ids) for ids in (source.dataset.users, source.dataset.items))
    if size > LARGEST:
        raise RecipeError(
            f"an ONNX file holds 2 GB, and the rows and ids of this model take {size / 2**30:.2f} GiB",
            where="export",
            remedy="use the format bundle, whose rows lie beside the graph",
        )


def _whole(source: ExportSource, dense: Any, rows: dict[str, Rows]) -> Any:
    """The graph over gathered rows, and before it what turns ids into rows."""
    dense = compose.add_prefix(dense, _INNER)
    needs = {node.name.removeprefix(_INNER) for node in dense.graph.input}
    used = ["item", *(name for name in DESCRIPTIONS if name != "item" and name in needs)]
    if "history_mask" in needs and "history" not in used:
        used.append("history")
    nodes, tables = _lookups(source, needs, used, rows)
    output = helper.make_node("Identity", [dense.graph.output[0].name], ["score"])
    graph = helper.make_graph(
        [*nodes, *dense.graph.node, output],
        source.recipe.export.name or source.recipe.name,
        [_input(name, source) for name in used],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["B", "C"])],
        [numpy_helper.from_array(rows[name].all(), f"{name}_table") for name in sorted(tables)],
        doc_string=__doc__,
    )
    graph.initializer.extend(dense.graph.initializer)
    opsets = [*dense.opset_import, helper.make_opsetid(_LABELS, 3)]
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=dense.ir_version, producer_name="rayrec"
    )
    helper.set_model_props(model, {"rayrec": json.dumps(described(source))})
    return model


def _lookups(
    source: ExportSource, needs: set[str], used: list[str], rows: dict[str, Rows]
) -> tuple[list[Any], set[str]]:
    """Nodes that give the inner inputs from the outer ones, and the tables of rows that they look into."""
    dataset = source.dataset
    ids: dict[str, Iterable[str]] = {
        "user": dataset.users,
        "item": dataset.items,
        "history": dataset.items,
        "history_event": dataset.schema.events,
    }
    nodes, tables = [_labels(name, ids[name]) for name in used if name in ids], set()
    for inner, name in (("user", "user"), ("items", "item"), ("history", "history")):
        if inner in needs:
            table = rows[name].same_as or name
            tables.add(table)
            nodes.append(helper.make_node("Gather", [f"{table}_table", f"{name}_row"], [_INNER + inner]))
    if "history_mask" in needs:
        nodes.append(helper.make_node("Sign", ["history_row"], ["history_known"]))
        mask = [f"{_INNER}history_mask"]
        nodes.append(helper.make_node("Cast", ["history_known"], mask, to=TensorProto.FLOAT))
    if "history_event" in needs:
        nodes.append(helper.make_node("Identity", ["history_event_row"], [f"{_INNER}history_event"]))
    for name in sorted(needs & FLOATS):
        nodes.append(helper.make_node("Identity", [name], [_INNER + name]))
    return nodes, tables


def _labels(name: str, ids: Iterable[str]) -> Any:
    """Ids to rows; row 0 is for those that are not known."""
    keys = [key for key in ids if key]
    return helper.make_node(
        "LabelEncoder",
        [name],
        [f"{name}_row"],
        domain=_LABELS,
        keys_strings=keys,
        values_int64s=list(range(1, len(keys) + 1)),
        default_int64=0,
    )


def _input(name: str, source: ExportSource) -> Any:
    schema = source.dataset.schema
    sizes: dict[str, list[str | int]] = {"user": [], "item": ["C"], "context": [schema.context_width]}
    events = schema.history if source.checkpoint.model.reads == "recent" else "L"
    kind = TensorProto.FLOAT if name in FLOATS else TensorProto.STRING
    return helper.make_tensor_value_info(
        name, kind, ["B", *sizes.get(name, [events])], doc_string=DESCRIPTIONS[name]
    )


def read(path: Path) -> Score:
    """The file of an export at `path`, in ONNX Runtime."""
    file = open_artifact(path, "onnx").path / FILE
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # as a replica scores
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        description = json.loads(session.get_modelmeta().custom_metadata_map["rayrec"])
    except Exception as error:  # onnxruntime raises a dozen kinds of its own, with no common base
        raise damaged(file, str(error).splitlines()[0]) from None
    used = {node.name for node in session.get_inputs()}

    def score(request: RankRequest) -> dict[str, float]:
        values = {name: value for name, value in feeds(request, description).items() if name in used}
        return dict(zip(request.items, session.run(["score"], values)[0][0].tolist(), strict=True))

    return score
