"""Promises of a model that scores: requests alone or together, unknown ids, stored rows, graphs, tables."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from app.bundle.export.item_graph import write_item_graph
from app.bundle.export.onnx import write_graph
from app.bundle.export.static_rows import static_rows
from app.evaluation.contract.subject import Subject, require, same
from app.models.base import Batch, History, Model, RowKind
from app.models.build import build_model
from app.models.discovery import model_class, model_config
from app.tables.base import Table
from app.tables.discovery import table_class, table_names
from app.tables.rows import Rows
from app.tables.write import write_rows

KINDS: tuple[RowKind, ...] = ("user", "history", "item")


def scores_every_candidate(subject: Subject) -> None:
    """The scores of B requests with C candidates are (B, C) finite float32, and `score_all` agrees."""
    for requests, candidates in ((1, 1), (1, 7), (5, 1), (3, 4)):
        _check_scores(subject.model, subject.batch(requests, candidates))


def makes_rows_in_advance(subject: Subject) -> None:
    """Rows of an id depend on the id alone, so that they can be made once and stored."""
    model, batch = subject.model, subject.batch(4, 6)
    users, items = torch.arange(model.inputs.users), torch.arange(model.inputs.items)
    user, history, item = model.user_rows(users), model.history_rows(items), model.item_rows(items)
    state = model.user_state(user[batch.user], history[batch.history.item], batch.history, batch.context)
    same(model.score(state, item[batch.item]), model(batch), "scores from stored rows")


def scores_a_request_as_if_alone(subject: Subject) -> None:
    """A request is scored alike whatever other requests and candidates are in the batch."""
    both = subject.batch(2, 5)
    history = History(*(column[1:] for column in vars(both.history).values()))
    alone = Batch(both.user[1:], both.item[1:, ::2], history, both.context[1:], both.label[1:, ::2])
    same(subject.model(alone), subject.model(both)[1:, ::2], "scores of the request alone")


def scores_candidates_in_any_order(subject: Subject) -> None:
    """The score of a candidate is the same wherever it stands among the others."""
    batch, order = subject.batch(3, 5), torch.tensor([3, 0, 4, 2, 1])
    shuffled = replace(batch, item=batch.item[:, order])
    same(subject.model(shuffled), subject.model(batch)[:, order], "scores of candidates in another order")


def reads_a_past_of_any_length(subject: Subject) -> None:
    """Padding before a history changes nothing, where the model reads more than what is recent."""
    model, batch = subject.model, subject.batch(3, 4)
    if model.reads != "recent":
        padded = [torch.nn.functional.pad(column, (3, 0)) for column in vars(batch.history).values()]
        longer = replace(batch, history=History(*padded))
        same(model(longer), model(batch), "scores with more padding")


def scores_unknown_ids(subject: Subject) -> None:
    """Unknown users and items, id 0, and empty histories get finite scores."""
    batch = subject.batch(3, 4)
    for values in (batch.user, *vars(batch.history).values(), batch.item):
        values.zero_()
    scores = subject.model(batch)
    require(bool(scores.isfinite().all()), f"the scores are {scores[0].tolist()}")


def treats_untrained_ids_as_unknown(subject: Subject) -> None:
    """An id without training has the rows of the unknown id with its own content features."""
    model, rows = subject.model, static_rows(subject.model)
    for kind in KINDS:
        side = "user" if kind == "user" else "item"
        for row in (~model.get_buffer(f"{side}_trained")).nonzero().squeeze(1).tolist()[1:]:
            expected = _unknown_with_content(subject.build(), kind, side, row)
            same(torch.from_numpy(rows[kind][row]), expected, f"{kind}_rows of an untrained {side}")


def _unknown_with_content(model: Model, kind: RowKind, side: str, row: int) -> Tensor:
    for name in (f"{side}_dense", f"{side}_category"):
        content = model.get_buffer(name).clone()
        content[0] = content[row]
        setattr(model, name, content)
    values: Tensor = getattr(model, f"{kind}_rows")(torch.zeros(1, dtype=torch.int64))[0]
    return values


def exports(subject: Subject) -> None:
    """`user_state` and `score` become ONNX graphs that give the same scores, as do rows of new items."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, values in static_rows(subject.model).items():
            write_rows(folder, kind, values, "float32")
        rows: dict[str, Rows] = {kind: Rows.open(folder, kind) for kind in KINDS}
        for scores in {True, not subject.model.retrieves}:
            write_graph(subject.model, rows, folder / "graph.onnx", scores=scores, int8=False)
        write_item_graph(subject.model, folder)


def restores_from_its_state(subject: Subject) -> None:
    """Another instance with the same `state_dict` gives the same scores."""
    torch.manual_seed(1)
    other = build_model(subject.source, dict(subject.hyperparameters), subject.dataset, fit=False).eval()
    other.load_state_dict(subject.model.state_dict())
    batch = subject.batch(4, 6)
    same(other(batch), subject.model(batch), "scores of the restored model")


def searches_what_it_can_be(subject: Subject) -> None:
    """Every choice of SPACE is a hyperparameter that the Config takes, and the model then scores."""
    for key, choices in model_class(subject.source).SPACE.items():
        for value in choices if isinstance(choices, list) else choices[:2]:
            config = model_config(subject.source, {**subject.hyperparameters, key: value})
            require(getattr(config, key) == value, f"{key} = {value!r} becomes {getattr(config, key)!r}")
            _check_scores(subject.build(**{key: value}), subject.batch(3, 4))


def takes_every_kind_of_table(subject: Subject) -> None:
    """Embeddings are tables that the model asks for, so that any kind of table fits it."""
    for kind in table_names():
        required = table_class(kind).Options.model_fields.items()
        options = {name: 3 for name, option in required if option.is_required()}
        _check_scores(subject.build(table=kind, table_options=options), subject.batch(2, 3))
    tables = [module for module in subject.model.modules() if isinstance(module, Table)]
    inside = {id(module) for table in tables for module in table.modules()}
    for name, module in subject.model.named_modules():
        bare = isinstance(module, torch.nn.Embedding) and id(module) not in inside
        require(not bare, f"{name} is an nn.Embedding, where `tables` would make it")


def _check_scores(model: Model, batch: Batch) -> None:
    scores = model(batch)
    require(scores.shape == batch.item.shape, f"scores of shape {tuple(scores.shape)}")
    require(scores.dtype == torch.float32, f"scores of type {scores.dtype}")
    require(bool(scores.isfinite().all()), "some scores are NaN or infinite")
    every = model.score_all(model.state(batch), model.item_rows(torch.arange(model.inputs.items)))
    require(every.shape == (len(batch.item), model.inputs.items), f"score_all gives {tuple(every.shape)}")
    same(every.gather(1, batch.item), scores, "scores of score_all")
