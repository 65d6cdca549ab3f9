"""Learning to rank as a teacher does: its distribution over items, beside the loss of the model itself.

The cross entropy of the student's distribution with the teacher's (Hinton et al. 2015, "Distilling the
knowledge in a neural network"), over the whole catalogue where scores are inner products and it is small
enough, else over a batch's candidates and items that are drawn for it, which nobody has labelled (Kang et al.
2020, "DE-RRD", whose lists are drawn by the teacher's ranks).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from app.artifact import open_artifact
from app.data.dataset import Dataset
from app.models.base import Batch, Model
from app.training.batches import AnyBatch
from app.training.checkpoint import load_checkpoint

LOGITS = 1 << 23  # of a batch: of all items, or of as many as keep to that
FEWEST = 256  # items, however many states a batch has
UNLABELLED = 32  # for each row of candidates, where scores are no inner products


@dataclass(frozen=True)
class Distillation:
    """An objective: `weight` of the teachers' distribution, the rest of the model's own loss.

    Where it is teachers alone, nothing is dropped out: they cannot be learned by heart as targets can.

    Attributes:
        teachers: folders of checkpoints; the mean of their distributions teaches.
        dataset: folder of the data set that they were trained on.
    """

    teachers: tuple[str, ...]
    dataset: str
    weight: float

    @property
    def key(self) -> str:
        """The digests of the teachers, and their weight."""
        digests = (open_artifact(Path(path), "checkpoint", verify=False).digest for path in self.teachers)
        return f"distillation 1 {self.weight} {' '.join(digests)}"

    def __call__(self, model: Model, batch: AnyBatch) -> Tensor:
        """The scalar loss of a batch."""
        model.train(self.weight < 1)
        device = model.log_popularity.device
        teachers = [teacher.to(device) for teacher in self._models]
        by_states = model.retrieves and all(teacher.retrieves for teacher in teachers)
        if isinstance(batch, Batch) and not by_states:
            taught = _of_lists(model, teachers, batch)
        else:  # sequences and sets are always learned by inner products
            taught = _of_states(model, teachers, batch)
        loss = self.weight * taught
        return loss if self.weight == 1 else loss + (1 - self.weight) * model.loss(batch)

    @cached_property
    def _models(self) -> list[Model]:
        dataset = Dataset.open(Path(self.dataset), verify=False)
        models = [load_checkpoint(Path(path), dataset).model.requires_grad_(False) for path in self.teachers]
        return [model.eval() for model in models]


def _of_states(model: Model, teachers: list[Model], batch: AnyBatch) -> Tensor:
    """The mean cross entropy over states, where scores are inner products: of items that all states share."""
    states, chosen = _states(model, batch)
    items = _items(model, len(states))
    with torch.no_grad():
        scores = [_states(t, batch, chosen)[0] @ t.rows("item", items).T for t in teachers]
    return _cross_entropy(states @ model.rows("item", items).T, scores)


def _states(model: Model, batch: AnyBatch, chosen: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """States (S, Q): of each row, or of those that own a target, which are given or found."""
    if isinstance(batch, Batch):
        return model.state(batch), None
    states, owner = model.states_of(batch)
    chosen = torch.unique(owner) if chosen is None else chosen
    return states[chosen], chosen


def _items(model: Model, states: int) -> Tensor:
    """Items with a training event: all, or a sample where they would make more than LOGITS logits."""
    known = model.known[1:]
    count = max(FEWEST, LOGITS // max(1, states))
    if len(known) <= count:
        return known
    return known[torch.randint(len(known), (count,), device=known.device)]


def _of_lists(model: Model, teachers: list[Model], batch: Batch) -> Tensor:
    """The mean cross entropy over each row's candidates and items that are drawn for it."""
    known, rows = model.known[1:], len(batch.item)
    drawn = known[torch.randint(len(known), (rows, UNLABELLED), device=known.device)]
    listed = replace(batch, item=torch.cat([batch.item, drawn], 1))
    with torch.no_grad():
        scores = [teacher(listed) for teacher in teachers]
    return _cross_entropy(model(listed), scores)


def _cross_entropy(logits: Tensor, taught: list[Tensor]) -> Tensor:
    """Of logits (S, N) with the mean of the softmax of each teacher's."""
    target = torch.stack([scores.softmax(1) for scores in taught]).mean(0)
    return -(target * logits.log_softmax(1)).sum(1).mean()
