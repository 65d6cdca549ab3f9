"""Learning to rank as a teacher does: its distribution over items, beside the loss of the model itself.

The cross entropy of the student's distribution with the teacher's (Hinton et al. 2015, "Distilling the
knowledge in a neural network"), over the whole catalogue where scores are inner products and it is small
enough, else over a batch's candidates and items that are drawn for it, which nobody has labelled (Kang et al.
2020, "DE-RRD", whose lists are drawn by the teacher's ranks).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from app.artifact import open_artifact
from app.data.dataset import Dataset
from app.models.base import Batch, Model, Sequences
from app.training.batches import AnyBatch
from app.training.checkpoint import load_checkpoint

WHOLE = 1 << 15  # items up to which a whole catalogue is compared
DRAWN = 1 << 12  # of a larger one, for all states of a batch together
UNLABELLED = 32  # for each row of candidates, where scores are no inner products
LOGITS = 1 << 23  # of a block of states


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
        if isinstance(batch, Batch):
            loss = self.weight * _of_events(model, teachers, batch)
        else:
            loss = self.weight * _of_targets(model, teachers, batch)
        return loss if self.weight == 1 else loss + (1 - self.weight) * model.loss(batch)

    @cached_property
    def _models(self) -> list[Model]:
        dataset = Dataset.open(Path(self.dataset), verify=False)
        models = [load_checkpoint(Path(path), dataset).model.requires_grad_(False) for path in self.teachers]
        return [model.eval() for model in models]

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_models"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)


def _of_targets(model: Model, teachers: list[Model], batch: Sequences) -> Tensor:
    """The mean cross entropy over the states that own a target."""
    states, owner = model.states_of(batch)
    owners = torch.unique(owner)
    items = _items(model)
    rows, states = model.rows("item", items), states[owners]
    with torch.no_grad():
        taught = [(t.states_of(batch)[0][owners], t.rows("item", items)) for t in teachers]
    total = states.new_zeros(())
    step = max(1, LOGITS // len(items))
    for start in range(0, len(owners), step):
        part = slice(start, start + step)
        with torch.no_grad():
            target = sum((s[part] @ r.T).softmax(1) for s, r in taught) / len(taught)
        total = total - (target * (states[part] @ rows.T).log_softmax(1)).sum()
    return total / len(owners)


def _items(model: Model) -> Tensor:
    """Items with a training event: all, or a sample of them."""
    known = model.known[1:]
    if len(known) <= WHOLE:
        return known
    return known[torch.randint(len(known), (DRAWN,), device=known.device)]


def _of_events(model: Model, teachers: list[Model], batch: Batch) -> Tensor:
    """The mean cross entropy over each row's candidates and items that are drawn for it."""
    known, rows = model.known[1:], len(batch.item)
    drawn = known[torch.randint(len(known), (rows, UNLABELLED), device=known.device)]
    listed = Batch(batch.user, torch.cat([batch.item, drawn], 1), batch.history, batch.context, batch.label)
    with torch.no_grad():
        target = torch.stack([teacher(listed).softmax(1) for teacher in teachers]).mean(0)
    logits: Tensor = model(listed)
    return -(target * logits.log_softmax(1)).sum(1).mean()
