"""Bare loops of a model of sequences, for the benchmark of training.

One has the batches of the stage as tensors in memory. The other is what one would write first: every
sequence padded to the longest history, and `F.cross_entropy` on the logits of all items.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from app.data.dataset import Dataset
from app.models.base import History, Model, Sequences
from app.models.build import build_model
from app.recipe import Recipe
from app.training.batches import batches_of
from app.training.defaults import settled

Objective = Callable[[Model, Sequences], Tensor]


def batches(recipe: Recipe, dataset: Dataset) -> list[Sequences]:
    """Those of an epoch, as the stage makes them."""
    model = build_model(recipe.model.name, {}, dataset)
    return list(batches_of(model, dataset, settled(recipe)).epoch(0))


def padded(all_batches: list[Sequences], length: int) -> list[Sequences]:
    """The same sequences, as many a batch, mixed, and padded to `length` and one more column."""
    users = [user for batch in all_batches for user in _apart(batch, length + 1)]
    order = np.random.default_rng(0).permutation(len(users))
    size = -(-len(users) // len(all_batches))
    return [_together([users[k] for k in order[i : i + size]]) for i in range(0, len(users), size)]


def _apart(batch: Sequences, columns: int) -> list[Sequences]:
    """A batch of each sequence."""
    missing = columns - batch.history.item.shape[1]
    item, event, gap = (
        F.pad(c, (missing, 0)) for c in (batch.history.item, batch.history.event, batch.history.gap)
    )
    row, column = (
        batch.owner // batch.history.item.shape[1],
        batch.owner % batch.history.item.shape[1] + missing,
    )
    apart = []
    for k in range(len(batch.user)):
        history = History(item[k : k + 1], event[k : k + 1], batch.history.age[k : k + 1], gap[k : k + 1])
        mine = row == k
        chosen = {name: getattr(batch, name)[mine] for name in ("target", "weight")}
        apart.append(
            replace(batch, user=batch.user[k : k + 1], history=history, owner=column[mine], **chosen)
        )
    return apart


def _together(users: list[Sequences]) -> Sequences:
    columns = users[0].history.item.shape[1]
    histories = zip(*(vars(user.history).values() for user in users), strict=True)
    return replace(
        users[0],
        user=torch.cat([user.user for user in users]),
        history=History(*(torch.cat(column) for column in histories)),
        owner=torch.cat([user.owner + k * columns for k, user in enumerate(users)]),
        target=torch.cat([user.target for user in users]),
        weight=torch.cat([user.weight for user in users]),
    )


def whole_softmax(model: Model, batch: Sequences) -> Tensor:
    """The mean cross entropy of the targets, from the logits of all items at once."""
    rows = model.item_rows(torch.arange(1, model.inputs.items))
    return F.cross_entropy(model.states_of_targets(batch) @ rows.T, batch.target - 1)


def bare(recipe: Recipe, model: Model, all_batches: list[Sequences], loss: Objective) -> float:
    """Targets a second of one epoch."""
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.sparse = False
    adam = torch.optim.Adam(model.parameters(), lr=settled(recipe).train.learning_rate, fused=True)
    samples, begun = 0, time.perf_counter()
    for number in torch.randperm(len(all_batches)).tolist():  # type: ignore[no-untyped-call]
        batch = all_batches[number]
        adam.zero_grad()
        loss(model, batch).backward()  # type: ignore[no-untyped-call]
        adam.step()
        samples += batch.samples
    return samples / (time.perf_counter() - begun)
