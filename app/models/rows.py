"""The rows of a model as they are stored, evaluated and served.

An id of the vocabulary that had no training event keeps the random embedding that it began with.
So its rows are those of the unknown id (row 0), which training gave a meaning, with its own content
features: what a new item gets that comes after training. Whatever makes rows to rank by takes them from
here, so that an evaluation ranks as the service will.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from app.models.base import Model, RowKind
from app.tables.base import Table

BLOCK = 1 << 13  # ids whose rows are computed at a time


@torch.no_grad()
def rows_of(model: Model, kind: RowKind, ids: Tensor) -> Tensor:
    """Rows (N, width) float32 of `ids` (N,), on the device of the model; packed ones as they are.

    Args:
        model: in evaluation mode.
        kind: "user", "history" or "item", after the piece of the model that makes them.
    """
    if kind in model.packed:
        return torch.cat([model.rows(kind, block).float() for block in torch.split(ids, BLOCK)])
    piece, side = _piece(model, kind), "user" if kind == "user" else "item"
    blocks = []
    for block in torch.split(ids, BLOCK):
        rows = piece(block).float()
        untrained = (~model.get_buffer(f"{side}_trained")[block]).nonzero().squeeze(1)
        if len(untrained) and rows.shape[1]:
            content = {name: model.get_buffer(name)[block[untrained]] for name in content_names(model, side)}
            unknown = _unknown_rows(model, kind, content).float()
            rows = rows.index_copy(0, untrained, unknown.expand(len(untrained), -1))
        blocks.append(rows)
    return torch.cat(blocks)


def content_names(model: Model, side: str) -> list[str]:
    """The buffers of content features that a "user" or an "item" has."""
    return [name for name in (f"{side}_dense", f"{side}_category") if model.get_buffer(name).shape[1]]


def unknown_row(model: Model, kind: RowKind, content: Mapping[str, Tensor]) -> Tensor:
    """The row (1, width) of an id that the model does not know; can be traced for ONNX.

    Args:
        content: its features, (1, F) or (1, K), by the names of `content_names`.
    """
    with _content(model, content):
        return _piece(model, kind)(_unknown_id(model))


def _unknown_rows(model: Model, kind: RowKind, content: Mapping[str, Tensor]) -> Tensor:
    """`unknown_row` of N ids, whose features are (N, F) or (N, K); (1, width) where there are none."""

    def row(*features: Tensor) -> Tensor:
        named = zip(content, features, strict=True)
        return unknown_row(model, kind, {name: values.unsqueeze(0) for name, values in named})[0]

    if not content:
        return unknown_row(model, kind, content)
    try:
        return torch.vmap(row)(*content.values())
    except RuntimeError:  # a model may do what cannot be vectorised
        return torch.stack([row(*features) for features in zip(*content.values(), strict=True)])


def _unknown_id(model: Model) -> Tensor:
    return torch.zeros(1, dtype=torch.int64, device=model.log_popularity.device)


@contextmanager
def _content(model: Model, tables: Mapping[str, Tensor]) -> Iterator[None]:
    """Meanwhile the content features have a single row, that of id 0."""
    kept = {name: model.get_buffer(name) for name in tables}
    try:
        for name, table in tables.items():
            setattr(model, name, table)
        yield
    finally:
        for name, table in kept.items():
            setattr(model, name, table)


def _piece(model: Model, kind: RowKind) -> Callable[[Tensor], Tensor]:
    piece: Callable[[Tensor], Tensor] = getattr(model, f"{kind}_rows")
    return piece


@torch.no_grad()
def average_unknown(model: Model) -> None:
    """Give the unknown id the mean embedding of the trained ids where training never met it, in place.

    Training meets it where ids are hidden at random (`train.id_dropout`): not in histories, nor among the
    items of a softmax over the batch. Tables begin with a row 0 of zeros, by which one that was never
    trained is known. Those that have a row for each user or item are changed; their names say which.
    """
    counts = {"user": model.inputs.users, "item": model.inputs.items}
    for table in (module for module in model.modules() if isinstance(module, Table)):
        side = table.name.partition("_")[0]
        if table.rows == counts.get(side) and not table.lookup(_unknown_id(model)).any():
            ids = model.get_buffer(f"{side}_trained").nonzero().squeeze(1)
            totals = [table.lookup(block).sum(0) for block in torch.split(ids, BLOCK)]
            table.set_unknown(torch.stack(totals).sum(0) / max(1, len(ids)))
