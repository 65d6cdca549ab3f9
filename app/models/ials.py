"""iALS: factors of users and items by alternating least squares over all pairs, met or not.

Hu, Koren and Volinsky 2008, "Collaborative filtering for implicit feedback datasets", with the penalty and
the scales of Rendle et al. 2022, "Revisiting the performance of iALS on item recommendation benchmarks":

    sum over pairs met of (1 - x.y)^2 + unobserved * sum over all pairs of (x.y)^2
    + penalty * (sum over users of n_u |x|^2 + sum over items of n_i |y|^2)

where n is what the first two sums weigh for the user or the item. `unobserved` is given for a log of any
density: as the weight of all pairs together, in those that were met.

No user is stored: the state is the factor that solves the least squares of the history at hand, so that new
users and new events count at once. See `least_squares` for the basis in which item factors are kept, and for
the conjugate gradients, which export.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from app.data.dataset import Dataset
from app.models.base import Content, History, Inputs, Model, ModelConfig
from app.models.item_knn import sets_of
from app.models.least_squares import Basis, Rows, conjugate_gradients
from app.tables.base import Tables

STEPS = 12  # of conjugate gradients from 0: an error of 1e-4 after a history of 200 items


class IalsConfig(ModelConfig):
    """Hyperparameters of the factorisation."""

    width: int = Field(192, ge=1, description="floats of a factor")
    sweeps: int = Field(12, ge=1, description="times that the users' and the items' factors are solved")
    unobserved: float = Field(
        10.0, gt=0, description="weight of all pairs together in the objective, in those that were met"
    )
    penalty: float = Field(0.015, gt=0, description="L2 penalty of factors, by the weight of their pairs")
    half_life: float = Field(
        0.0, ge=0, description="events back at which one counts half; 0, or without an order: all alike"
    )
    prior: float = Field(0.01, ge=0, description="score that being the most popular item adds")


class Ials(Model):
    """Inner product of an item's factor with the factor that explains the history best."""

    Config = IalsConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "width": [32, 64, 128, 192],
        "unobserved": (1.0, 100.0, "log"),
        "penalty": (0.001, 0.1, "log"),
        "half_life": [0.0, 10.0, 30.0, 100.0],
    }
    retrieves = True
    learns = False
    reads = "all"
    config: IalsConfig
    factor: Tensor
    shrink: Tensor
    prior: Tensor

    def __init__(self, config: IalsConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        self.register_buffer("factor", torch.zeros(inputs.items, config.width))
        self.register_buffer("shrink", torch.zeros(config.width))  # penalty of an event more, by direction
        self.register_buffer("prior", torch.zeros(inputs.items))

    def history_rows(self, items: Tensor) -> Tensor:
        """Factors (…, D) of items; 0 for the unknown one."""
        return self.factor[items]

    def item_rows(self, items: Tensor) -> Tensor:
        """Factors of items and the score that their popularity adds, (…, D + 1)."""
        return torch.cat([self.factor[items], self.prior[items].unsqueeze(-1)], -1)

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """The factors (B, D) that explain the histories best, and 1 for the popularity: (B, D + 1)."""
        weight = history.mask
        if self.inputs.ordered and self.config.half_life:
            back = torch.arange(weight.shape[1] - 1, -1, -1, device=weight.device)
            weight = weight * 0.5 ** (back / self.config.half_life)
        diagonal = 1 + weight.sum(1, keepdim=True) * self.shrink
        rows = history_rows * weight.unsqueeze(2).sqrt()
        target = (history_rows * weight.unsqueeze(2)).sum(1)
        state = conjugate_gradients(rows, diagonal, target, torch.zeros_like(target), STEPS)
        return torch.cat([state, torch.ones_like(state[:, :1])], 1)

    def fit(self, dataset: Dataset) -> None:
        """Factorise all training events, whatever their type."""
        config, met = self.config, sets_of(dataset)
        random = torch.Generator().manual_seed(0)
        item = torch.randn(self.factor.shape, generator=random) * (0.1 / config.width**0.5)
        by_user, by_item = Rows(met), Rows(met.T.tocsr())
        item[by_item.length == 0] = 0.0  # among them the unknown one
        user = torch.zeros(met.shape[0], config.width)
        share = config.unobserved * met.nnz / (met.shape[0] * met.shape[1])
        for _ in range(config.sweeps):
            basis = Basis(item, share, config.penalty)
            by_user.solve(basis, user)
            by_item.solve(Basis(user, share, config.penalty), item)
        basis = Basis(item, share, config.penalty)
        self.factor.copy_(item @ basis.into)
        self.shrink.copy_(basis.shrink)
        counts = torch.from_numpy(dataset.popularity).float()
        self.prior.copy_(config.prior * counts / counts.max().clamp(min=1))
