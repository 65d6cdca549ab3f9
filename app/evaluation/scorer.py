"""Scores of requests, by which an evaluation ranks, whatever computes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from app.models.base import Batch, Model
from app.models.rows import RowKind, rows_of
from app.tables.rows import Rows

FLOATS = 1 << 22  # of gathered candidate rows at a time


class Scorer(Protocol):
    """Scores requests; higher is better. NaN ranks last."""

    def all(self, batch: Batch) -> Tensor:
        """(B, items) float32 on the CPU: every item, column 0 the unknown one."""
        ...

    def candidates(self, batch: Batch) -> Tensor:
        """(B, C) float32 on the CPU: the candidates `batch.item`."""
        ...


class ModelScorer:
    """Scores with a model's pieces, as serving does: static rows once, the rest per batch.

    Args:
        model: put into evaluation mode; scored on the device it is on.
        rows: stored rows "user", "history" and "item", as a compressed checkpoint has them;
            what is not among them, or None, is computed by the model.
    """

    def __init__(self, model: Model, rows: Mapping[str, Rows] | None = None) -> None:
        self.model = model.eval()
        self.device = next(iter([*model.parameters(), *model.buffers()])).device
        self._rows = rows or {}
        self._item, self._history = self._every("item"), self._every("history")

    @torch.no_grad()
    def all(self, batch: Batch) -> Tensor:
        """Scores (B, items) of every item."""
        return self.model.score_all(self._state(batch), self._item).float().cpu()

    @torch.no_grad()
    def candidates(self, batch: Batch) -> Tensor:
        """Scores (B, C), some requests at a time, so that the gathered item rows stay small."""
        state, items = self._state(batch), batch.item.to(self.device)
        size = max(1, FLOATS // max(1, items.shape[1] * self._item.shape[1]))
        parts = [
            self.model.score(s, self._item[i])
            for s, i in zip(torch.split(state, size), torch.split(items, size), strict=True)
        ]
        return torch.cat(parts).float().cpu() if parts else torch.zeros(items.shape)

    def _state(self, batch: Batch) -> Tensor:
        batch = batch.to(self.device)
        if "user" in self._rows:
            user = torch.from_numpy(self._rows["user"].gather(batch.user.cpu().numpy())).to(self.device)
        else:
            user = rows_of(self.model, "user", batch.user)
        return self.model.user_state(user, self._history[batch.history.item], batch.history, batch.context)

    def _every(self, kind: RowKind) -> Tensor:
        if kind in self._rows:
            return torch.from_numpy(np.array(self._rows[kind].all())).to(self.device)
        return rows_of(self.model, kind, torch.arange(self.model.inputs.items, device=self.device))
