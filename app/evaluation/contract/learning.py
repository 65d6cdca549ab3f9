"""Promises of a model that learns: from which rows, that it can, and that it is served as it learned."""

from __future__ import annotations

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from app.evaluation.contract.subject import Subject, require, same
from app.models import losses
from app.models.base import Batch, History, Model, Sequences
from app.recipe import Train

ROWS, STEPS, ABOVE = 32, 300, 0.75  # learned by heart in so many steps: the share of items ranked below
BETWEEN, LEARNING_RATE = 20, 0.02


def follows_the_past_alone(subject: Subject) -> None:
    """A state of a sequence is `user_state` of the history cut there, whatever follows and however padded."""
    model = subject.model
    if model.trains_on != "sequences":
        return
    batch = subject.sequences(3)
    users, history = model.user_rows(batch.user), batch.history
    states = model.states(users, model.history_rows(history.item), history)
    context = torch.rand(len(batch.user), model.inputs.context)
    for length in range(1, history.item.shape[1] + 1):
        for padding in (0, history.item.shape[1] - length):
            cut = _padded(history, length, padding)
            state = model.user_state(users, model.history_rows(cut.item), cut, context)
            same(state, states[:, length - 1], f"states of histories cut after {length - 1} events")


def _padded(history: History, length: int, padding: int) -> History:
    """The first columns of a history as they are served: with ages, and padding in front."""
    columns = [column[:, :length] for column in (history.item, history.event, history.gap)]
    item, event, gap = (nn.functional.pad(column, (padding, 0)) for column in columns)
    return History(item, event, gap.flip(1).cumsum(1).flip(1) * (item > 0), gap)


def learns_with_every_weight(subject: Subject) -> None:
    """The loss has a gradient for every weight; a model that does not learn has no weights."""
    model = subject.build()
    names = [name for name, _ in model.named_parameters()]
    if not model.learns:
        require(not names, f"`learns` is False and there are the weights {', '.join(names)}")
        return
    with torch.enable_grad():
        _loss(subject, model).backward()  # type: ignore[no-untyped-call]
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.to_dense().any()]
    require(not idle, f"no gradient reaches {', '.join(idle)}")


def _loss(subject: Subject, model: Model) -> Tensor:
    if model.trains_on != "events":
        return model.loss(subject.sequences(16))
    batch = subject.batch(16, 1 if model.config.loss == "sampled_softmax" else 5)
    batch.label[:, 0] = 1
    # A softmax over a row does not feel what is added to all its scores, such as a last bias.
    return (
        losses.bce(model(batch), batch.label) if model.config.loss == "cross_entropy" else model.loss(batch)
    )


def learns_rows_by_heart(subject: Subject) -> None:
    """Trained on a few rows alone, it ranks what they want above most of what they do not."""
    batch, model, below = _rows(subject), subject.new(), 0.0
    if not model.learns:
        return
    optimizer = _optimizer(model)
    for _ in range(0, STEPS, BETWEEN):
        _train(model, batch, optimizer, BETWEEN)
        below = max(below, _ranked_below(model, batch))
        if below > ABOVE:
            return
    require(False, f"it ranks them above {below:.0%} after {STEPS} steps")


def learns_alike_under_a_seed(subject: Subject) -> None:
    """Two trainings under the same seed give the same weights, bit for bit."""
    if not subject.model.learns:
        return
    rows, runs = _rows(subject), []
    for _ in range(2):
        model = subject.new()
        _train(model, rows, _optimizer(model), 3)
        runs.append(model.state_dict())
    unlike = [name for name in runs[0] if not torch.equal(runs[0][name], runs[1][name])]
    require(not unlike, f"{', '.join(unlike)} differ")


def asks_for_training_that_there_is(subject: Subject) -> None:
    """TRAINING has keys of [train] and values that they take."""
    try:
        Train.model_validate(subject.model.TRAINING)
    except ValidationError as error:
        first = error.errors()[0]
        require(False, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")


def _train(model: Model, batch: Batch | Sequences, optimizer: torch.optim.Optimizer, steps: int) -> None:
    model.train()
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            model.loss(batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def _optimizer(model: Model) -> torch.optim.Optimizer:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = False  # Adam takes no sparse gradient
    return torch.optim.Adam(model.parameters(), LEARNING_RATE)


def _rows(subject: Subject) -> Batch | Sequences:
    """About ROWS rows to learn: events of distinct users with all items as candidates, or a few sequences."""
    inputs = subject.model.inputs
    if subject.model.trains_on != "events":
        return subject.sequences(max(1, ROWS // inputs.history))
    count = min(ROWS, inputs.users - 1)
    batch = subject.batch(count, inputs.items - 1)
    batch.user = torch.arange(1, count + 1)
    positive = batch.item[:, :1]
    every = torch.arange(1, inputs.items).expand(count, -1)
    batch.item = torch.cat([positive, every[every != positive].view(count, -1)], 1)
    batch.label[:, 0] = 1
    if subject.model.config.loss in ("sampled_softmax", "softmax"):
        batch.item, batch.label = positive, batch.label[:, :1]
    return batch


@torch.no_grad()
def _ranked_below(model: Model, batch: Batch | Sequences) -> float:
    """The share of the items that a row does not want and that have a lower score than one that it wants."""
    model.eval()
    rows = model.item_rows(torch.arange(model.inputs.items))
    if isinstance(batch, Batch):
        states, owner, target = model.state(batch), torch.arange(len(batch.item)), batch.item[:, 0]
    else:
        history, users = batch.history, model.user_rows(batch.user)
        owner, target, items = batch.owner, batch.target, model.history_rows(history.item)
        if model.trains_on == "sequences":
            states = model.states(users, items, history).flatten(0, 1)
        else:
            states = model.user_state(
                users, items, history, items.new_zeros(len(users), model.inputs.context)
            )
    scores, wanted = model.score_all(states, rows), torch.zeros(len(states), len(rows), dtype=torch.bool)
    wanted[owner, target] = wanted[:, ~model.item_trained] = True
    below = (scores[owner] < scores[owner, target].unsqueeze(1)) & ~wanted[owner]
    return float(below.sum() / (~wanted[owner]).sum())
