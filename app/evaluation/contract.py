"""What every model promises, checked: for the models of RayRec by the tests, for a user's own by
`rayrec check --model`.

A promise is a function that raises BrokenPromise. Its docstring says what is promised.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.bundle.export.item_graph import write_item_graph
from app.bundle.export.onnx import write_graphs
from app.bundle.export.static_rows import static_rows
from app.data.dataset import Dataset
from app.errors import RecipeError
from app.evaluation.sample import sample_dataset
from app.models.base import Batch, History, Model
from app.models.build import build_model
from app.models.discovery import model_class, model_config
from app.models.rows import RowKind
from app.recipe import ModelSection
from app.tables.base import Table
from app.tables.discovery import table_class, table_names
from app.tables.rows import Rows, write_rows

KINDS: tuple[RowKind, ...] = ("user", "history", "item")


class BrokenPromise(Exception):
    """What a model does instead of what it promises."""


@dataclass(frozen=True)
class Subject:
    """A model under test, with a data set to build it for.

    Args:
        source, hyperparameters: as of `build_model`.
    """

    source: str
    dataset: Dataset
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)

    def build(self, **changes: Any) -> Model:
        """The model with random weights, large enough that every part of it matters; evaluation mode."""
        torch.manual_seed(0)
        model = build_model(self.source, {**self.hyperparameters, **changes}, self.dataset)
        if model.learns:
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
        return model.eval()

    @cached_property
    def model(self) -> Model:
        """The model with the hyperparameters given; promises leave it as it is."""
        return self.build()

    def batch(self, requests: int, candidates: int, seed: int = 0) -> Batch:
        """Requests at random: the first has no history and an unknown user, the others full histories."""
        inputs, random = self.model.inputs, torch.Generator().manual_seed(seed)

        def ids(limit: int, *shape: int) -> Tensor:
            return torch.randint(1, limit, shape, generator=random)

        shape = (requests, inputs.history)
        age = torch.rand(shape, generator=random).sort(1, descending=True).values * 5
        history = History(ids(inputs.items, *shape), ids(inputs.events, *shape), age)
        user = ids(inputs.users, requests)
        for values in (user, history.item, history.event, history.age):
            values[0] = 0
        return Batch(
            user,
            ids(inputs.items, requests, candidates),
            history,
            torch.rand((requests, inputs.context), generator=random),
            torch.zeros(requests, candidates),
        )


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
    _same(model.score(state, item[batch.item]), model(batch), "scores from stored rows")


def scores_a_request_as_if_alone(subject: Subject) -> None:
    """A request is scored alike whatever other requests and candidates are in the batch."""
    both = subject.batch(2, 5)
    history = History(both.history.item[1:], both.history.event[1:], both.history.age[1:])
    alone = Batch(both.user[1:], both.item[1:, ::2], history, both.context[1:], both.label[1:, ::2])
    _same(subject.model(alone), subject.model(both)[1:, ::2], "scores of the request alone")


def learns_with_every_weight(subject: Subject) -> None:
    """The loss has a gradient for every weight; a model that does not learn has no weights."""
    model = subject.build()
    names = [name for name, _ in model.named_parameters()]
    if not model.learns:
        _require(not names, f"`learns` is False and there are the weights {', '.join(names)}")
        return
    batch = subject.batch(16, 1 if model.config.loss == "sampled_softmax" else 5)
    batch.label[:, 0] = 1
    with torch.enable_grad():
        model.loss(batch).backward()  # type: ignore[no-untyped-call]
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.to_dense().any()]
    _require(not idle, f"no gradient reaches {', '.join(idle)}")


def scores_unknown_ids(subject: Subject) -> None:
    """Unknown users and items, id 0, and empty histories get finite scores."""
    batch = subject.batch(3, 4)
    for values in (batch.user, batch.history.item, batch.history.event, batch.history.age, batch.item):
        values.zero_()
    scores = subject.model(batch)
    _require(bool(scores.isfinite().all()), f"the scores are {scores[0].tolist()}")


def treats_untrained_ids_as_unknown(subject: Subject) -> None:
    """An id without training has the rows of the unknown id with its own content features."""
    model, rows = subject.model, static_rows(subject.model)
    for kind in KINDS:
        side = "user" if kind == "user" else "item"
        for row in (~model.get_buffer(f"{side}_trained")).nonzero().squeeze(1).tolist()[1:]:
            expected = _unknown_with_content(subject.build(), kind, side, row)
            _same(torch.from_numpy(rows[kind][row]), expected, f"{kind}_rows of an untrained {side}")


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
        write_graphs(subject.model, {kind: Rows.open(folder, kind) for kind in KINDS}, folder, int8=False)
        write_item_graph(subject.model, folder)


def restores_from_its_state(subject: Subject) -> None:
    """Another instance with the same `state_dict` gives the same scores."""
    torch.manual_seed(1)
    other = build_model(subject.source, dict(subject.hyperparameters), subject.dataset, fit=False).eval()
    other.load_state_dict(subject.model.state_dict())
    batch = subject.batch(4, 6)
    _same(other(batch), subject.model(batch), "scores of the restored model")


def searches_what_it_can_be(subject: Subject) -> None:
    """Every choice of SPACE is a hyperparameter that the Config takes, and the model then scores."""
    for key, choices in model_class(subject.source).SPACE.items():
        for value in choices if isinstance(choices, list) else choices[:2]:
            config = model_config(subject.source, {**subject.hyperparameters, key: value})
            _require(getattr(config, key) == value, f"{key} = {value!r} becomes {getattr(config, key)!r}")
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
        _require(not bare, f"{name} is an nn.Embedding, where `tables` would make it")


PROMISES: tuple[Callable[[Subject], None], ...] = (
    scores_every_candidate,
    makes_rows_in_advance,
    scores_a_request_as_if_alone,
    learns_with_every_weight,
    scores_unknown_ids,
    treats_untrained_ids_as_unknown,
    exports,
    restores_from_its_state,
    searches_what_it_can_be,
    takes_every_kind_of_table,
)


def check_model(model: ModelSection) -> dict[str, Any]:
    """Check a model against every promise.

    Returns:
        model, its name, and promises, how many it keeps.

    Raises:
        RecipeError: the model cannot be built, or breaks promises, which the error lists.
    """
    model_config(model.source, model.hyperparameters)
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(model.source, sample_dataset(Path(folder) / "dataset"), model.hyperparameters)
        subject.build()
        broken = [message for promise in PROMISES if (message := broken_by(subject, promise))]
    if broken:
        raise RecipeError(
            f"{model.name} breaks {len(broken)} of {len(PROMISES)} promises of a model\n  "
            + "\n  ".join(broken),
            where=model.file or "model.name",
            remedy="see the docstrings of app.models.base.Model",
        )
    return {"model": model.name, "promises": len(PROMISES)}


@torch.no_grad()
def broken_by(subject: Subject, promise: Callable[[Subject], None]) -> str:
    """The promise and what the model does instead, in one line; "" where it is kept."""
    try:
        promise(subject)
    except Exception as error:
        what = str(error).strip().splitlines() or [type(error).__name__]
        line = "" if isinstance(error, BrokenPromise) else _line_of(error, subject.source)
        return f"{promise.__name__}: {(promise.__doc__ or '').strip()} But {line}{what[0]}"
    return ""


def _line_of(error: Exception, source: str) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == source]
    return f"line {lines[-1]} raised {type(error).__name__}: " if lines else f"{type(error).__name__}: "


def _check_scores(model: Model, batch: Batch) -> None:
    scores = model(batch)
    _require(scores.shape == batch.item.shape, f"scores of shape {tuple(scores.shape)}")
    _require(scores.dtype == torch.float32, f"scores of type {scores.dtype}")
    _require(bool(scores.isfinite().all()), "some scores are NaN or infinite")
    every = model.score_all(model.state(batch), model.item_rows(torch.arange(model.inputs.items)))
    _require(every.shape == (len(batch.item), model.inputs.items), f"score_all gives {tuple(every.shape)}")
    _same(every.gather(1, batch.item), scores, "scores of score_all")


def _same(values: Tensor, expected: Tensor, what: str) -> None:
    _require(values.shape == expected.shape, f"{what}: {tuple(values.shape)}, not {tuple(expected.shape)}")
    if not torch.allclose(values, expected, atol=1e-5, rtol=1e-4):
        worst = (values - expected).abs().max()
        raise BrokenPromise(f"{what} differ by {worst:.2g}")


def _require(kept: bool, what: str) -> None:
    if not kept:
        raise BrokenPromise(what)
