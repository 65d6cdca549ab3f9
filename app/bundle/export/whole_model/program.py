"""A whole model as a torch.export program, which is a format of its own and what others are lowered from."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from app.bundle.export.whole_model.model import WholeModel


def program(whole: WholeModel, example: dict[str, Tensor], *, dynamic: bool) -> ExportedProgram:
    """The model as a torch.export program, without the parameters that gathered rows replace.

    Args:
        whole: what is exported.
        example: inputs by name.
        dynamic: whether any B, C and, where the model reads more than what is recent, L may follow; else the
            shapes are those of the example.
    """
    any_length = whole.served.model.reads != "recent"
    shapes = None
    if dynamic:
        varies: dict[str, dict[int, Any]] = {"item": {1: Dim("C")}}
        if any_length:
            varies |= {name: {1: Dim("L")} for name in whole.names if name.startswith("history")}
        shapes = (tuple({0: Dim("B"), **varies.get(name, {})} for name in whole.names),)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of cells, which keep a list of their weights
        exported = torch.export.export(whole, tuple(example.values()), dynamic_shapes=shapes)
    return _without_unused(exported)


def _without_unused(exported: ExportedProgram) -> ExportedProgram:
    """The same program without parameters and buffers that nothing reads; changes it in place."""
    nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    kept = []
    for spec in exported.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT or nodes[spec.arg.name].users:
            kept.append(spec)
            continue
        exported.graph.erase_node(nodes[spec.arg.name])
        exported.state_dict.pop(spec.target, None)
        exported.constants.pop(spec.target, None)
    exported.graph_signature.input_specs[:] = kept
    exported.graph_module.recompile()
    return exported
