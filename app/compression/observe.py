"""What the dense layers of a model are given per request, measured over batches of the training part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from app.compression.work import Work
from app.errors import DataError
from app.models.base import Batch, Model
from app.models.resize import linear_layers
from app.training.batches import AnyBatch, batches_of
from app.training.defaults import settled

BATCHES = 16  # some thousands of inputs


@dataclass
class Inputs:
    """Sums over the inputs (…, D) of a layer, in double precision.

    Attributes:
        count: of the inputs.
        total: (D,).
        products: (D, D), of each input with itself.
    """

    count: int
    total: Tensor
    products: Tensor

    @property
    def mean(self) -> Tensor:
        """(D,)."""
        return self.total / self.count

    @property
    def moments(self) -> Tensor:
        """(D, D): the mean product of two of the D numbers."""
        return self.products / self.count


@torch.no_grad()
def observe(work: Work) -> dict[str, Inputs]:
    """The inputs of the dense layers that run per request, by the layers' names; others are left out.

    Raises:
        DataError: they, or the weights of a layer, are not finite: training diverged.
    """
    model, seen = work.model.eval(), dict[str, Inputs]()
    if not (layers := linear_layers(model)):
        return seen
    batches = batches_of(model, work.dataset, settled(work.recipe), rank=0, world=1).epoch(0, 0)
    for batch in islice(batches, BATCHES):
        _score(model, batch, seen)
    for name, inputs in seen.items():
        if not (inputs.products.isfinite().all() and layers[name].weight.isfinite().all()):
            raise DataError(
                "the weights or inputs of the layer are not finite numbers",
                where=f"dense layer {name}",
                remedy="training diverged: lower train.learning_rate, or set train.clip_norm",
            )
    return seen


def _score(model: Model, batch: AnyBatch, seen: dict[str, Inputs]) -> None:
    history = batch.history
    user, rows = model.rows("user", batch.user), model.rows("history", history.item)
    if isinstance(batch, Batch):
        items = model.rows("item", batch.item)
        with _noting(model, seen):
            model.score(model.user_state(user, rows, history, batch.context), items)
        return
    with _noting(model, seen):
        if model.trains_on == "sequences":
            model.states(user, rows, history)
        else:
            model.user_state(user, rows, history, rows.new_zeros((len(rows), model.inputs.context)))


@contextmanager
def _noting(model: Model, seen: dict[str, Inputs]) -> Iterator[None]:
    """Meanwhile each dense layer adds its inputs to `seen`; rows are evaluated before."""
    layers = linear_layers(model).items()
    hooks = [layer.register_forward_pre_hook(partial(_note, seen, name)) for name, layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _note(seen: dict[str, Inputs], name: str, layer: nn.Module, given: tuple[Any, ...]) -> None:
    inputs = given[0].detach().flatten(0, -2).double()
    total, products = inputs.sum(0), inputs.T @ inputs
    before = seen.setdefault(name, Inputs(0, torch.zeros_like(total), torch.zeros_like(products)))
    before.count += len(inputs)
    before.total += total
    before.products += products
