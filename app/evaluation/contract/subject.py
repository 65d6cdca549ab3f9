"""A model under test, what it is tried on, and how a promise that it breaks is told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from app.data.dataset import Dataset
from app.models.base import Batch, History, Model, Sequences
from app.models.build import build_model


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

    def new(self) -> Model:
        """The model as training begins with it."""
        torch.manual_seed(0)
        return build_model(self.source, dict(self.hyperparameters), self.dataset)

    def batch(self, requests: int, candidates: int, seed: int = 0) -> Batch:
        """Requests at random: the first has no history and an unknown user, the others full histories."""
        inputs, random = self.model.inputs, torch.Generator().manual_seed(seed)

        def ids(limit: int, *shape: int) -> Tensor:
            return torch.randint(1, limit, shape, generator=random)

        shape = (requests, inputs.history)
        age = torch.rand(shape, generator=random).sort(1, descending=True).values * 5
        gap = torch.rand(shape, generator=random)
        history = History(ids(inputs.items, *shape), ids(inputs.events, *shape), age, gap)
        user = ids(inputs.users, requests)
        for values in (user, *vars(history).values()):
            values[0] = 0
        return Batch(
            user,
            ids(inputs.items, requests, candidates),
            history,
            torch.rand((requests, inputs.context), generator=random),
            torch.zeros(requests, candidates),
        )

    def sequences(self, users: int, seed: int = 0) -> Sequences:
        """Trained users at random with full histories of distinct items, for a model of sequences or sets.

        A sequence is learned at every event, and what a user's first event is predicted from is the padding
        in front; of a set every item is a target.
        """
        inputs, random = self.model.inputs, torch.Generator().manual_seed(seed)
        known = {side: self.model.get_buffer(f"{side}_trained").nonzero()[:, 0] for side in ("user", "item")}

        def shuffled(side: str) -> Tensor:
            return known[side][torch.randperm(len(known[side]), generator=random)]

        item = torch.stack([shuffled("item")[: inputs.history] for _ in range(users)])
        item = torch.nn.functional.pad(item, (1, 0))
        event = torch.randint(1, inputs.events, item.shape, generator=random) * (item > 0)
        gap = torch.rand(item.shape, generator=random) * (item > 0)
        row, column = (item > 0).nonzero().T
        negatives = torch.arange(1, inputs.items)
        in_order = self.model.trains_on == "sequences"
        return Sequences(
            user=shuffled("user")[:users],
            history=History(item, event, torch.zeros_like(gap)[:, : 0 if in_order else None], gap),
            owner=row * item.shape[1] + column - 1 if in_order else row,
            target=item[row, column],
            weight=torch.ones(len(row)),
            negatives=negatives,
            log_q=torch.full((len(negatives),), -math.log(inputs.items - 1)),
        )


def same(values: Tensor, expected: Tensor, what: str) -> None:
    """Raise BrokenPromise where values are not those expected, but for rounding."""
    require(values.shape == expected.shape, f"{what}: {tuple(values.shape)}, not {tuple(expected.shape)}")
    if not torch.allclose(values, expected, atol=1e-5, rtol=1e-4):
        worst = (values - expected).abs().max()
        raise BrokenPromise(f"{what} differ by {worst:.2g}")


def require(kept: bool, what: str) -> None:
    """Raise BrokenPromise, saying `what` happened, unless the promise is kept."""
    if not kept:
        raise BrokenPromise(what)
